"""What the emulator cannot show, read from what nvcc makes of the kernels: scopes, widths of accesses, registers.

Every .cu file is compiled without a warning for each architecture. No GPU is needed, and nothing here ran on one.
"""

import hashlib
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from moe_kernels import build
from moe_kernels.errors import KernelError

FILES = sorted(path.name for path in build.SOURCES.glob("*.cu"))
FLAGS = ("-std=c++17", "-O3", "-cubin", "-Werror=all-warnings", "-Xcompiler=-Wall,-Werror", "-Xptxas=-v")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
ACCOUNT = Path(__file__).parents[3] / "docs" / "gpu.md"
MOST_REGISTERS = (
    128  # of a thread of a kernel that moves rows: then a processor holds four of its blocks or more
)
MEETING = ("announce", "exchange_counts", "store_rows", "send_rows")  # kernels that wait for other ranks
STORING = ("store_rows", "send_rows")  # kernels whose last block says that the rows are there


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its PTX, and what ptxas says of it."""

    name: str
    ptx: str
    registers: int
    properties: str

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"\b{re.escape(instruction)}\b", self.ptx))


@pytest.fixture(scope="module")
def nvcc():
    try:
        return build._tool("nvcc")
    except KernelError as problem:
        reason = f"{problem} (the extra `nvcc`, or CUDA's own package)"
        if os.environ.get("MOE_TRAIN_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and MOE_TRAIN_REQUIRE_ALL=1 says that no test may be skipped")
        pytest.skip(reason)


@pytest.fixture(scope="module")
def kernels_of(nvcc, tmp_path_factory):
    """The kernels of a file, compiled for an architecture: once for each state of the sources. Warnings are errors."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    headers = [path for path in build.SOURCES.iterdir() if path.suffix in (".h", ".cuh")]

    def compiled(file: str, architecture: str) -> list[Kernel]:
        digest = hashlib.sha256(f"{version}\0{architecture}\0{FLAGS}\0{file}".encode())
        for path in (*sorted(headers), build.SOURCES / file):
            digest.update(path.read_bytes())
        kept = build.cache_folder() / "tests" / f"nvcc-{digest.hexdigest()[:20]}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            made = _compile(nvcc, file, architecture, tmp_path_factory.mktemp("nvcc"))
            unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
            unfinished.write_text(json.dumps([asdict(kernel) for kernel in made]))
            os.replace(unfinished, kept)
        return [Kernel(**kernel) for kernel in json.loads(kept.read_text())]

    return compiled


def _compile(nvcc: str, file: str, architecture: str, folder: Path) -> list[Kernel]:
    source, cubin = str(build.SOURCES / file), str(folder / "out.cubin")
    command = [nvcc, *FLAGS, f"-arch={architecture}", "-keep", "-keep-dir", str(folder), source, "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    ptx = next(folder.glob("*.ptx")).read_text()
    bodies = dict(re.findall(r"\.entry (\w+)\(((?:.|\n)*?)\n}\n", ptx))
    said = re.findall(r"entry function '(\w+)'((?:.|\n)*?Used (\d+) registers)", done.stderr)
    kernels = [Kernel(name, bodies[name], int(registers), text) for name, text, registers in said]
    assert len(kernels) == len(bodies), done.stderr
    return kernels


def check(file: str, kernels: list[Kernel]) -> None:
    """What must hold of every kernel on every architecture."""
    assert kernels, f"{file} has no kernel"
    for kernel in kernels:
        assert "0 bytes spill stores, 0 bytes spill loads" in kernel.properties, kernel.properties
        check_scopes(kernel)
        if any(name in kernel.name for name in ("store_rows", "send_rows", "pull_rows")):
            check_rows(kernel)


def check_scopes(kernel: Kernel) -> None:
    meets = any(name in kernel.name for name in MEETING)
    stores = any(name in kernel.name for name in STORING)
    # `raise` and the last word of `fail`; the wait is one loop, of which the compiler may peel the first round.
    assert kernel.count("st.release.sys.b32") == (2 if meets else 0), kernel.name
    assert kernel.count("ld.acquire.sys.b32") in ((1, 2) if meets else (0,)), kernel.name
    assert kernel.count("atom.add.acq_rel.gpu.u32") == (1 if stores else 0), kernel.name
    assert not re.search(r"\.(relaxed|volatile|cta)\b", kernel.ptx.replace("bar.sync", "")), kernel.name


def check_rows(kernel: Kernel) -> None:
    """A row in words of 16 bytes is never touched by less; and where it is not aligned, no access is that wide."""
    assert kernel.registers <= MOST_REGISTERS, (kernel.name, kernel.registers)
    loads = re.findall(r"\bld\.(?:global\.)?v4\.[uf]32", kernel.ptx)
    stores = re.findall(r"\bst\.(?:global\.)?v4\.[uf]32", kernel.ptx)
    if "uint4" not in kernel.name:
        assert not [*loads, *stores], kernel.name
        return
    rows_read = 2 if "send_rows" in kernel.name else 1
    assert len(loads) in range(4 * rows_read, 1000, 4), (kernel.name, loads)  # whole chunks
    assert len(stores) in range(4, 1000, 4), (kernel.name, stores)
    assert not re.search(r"\b(ld|st)\.(global\.)?[ub](8|16)\b", kernel.ptx), kernel.name


@pytest.mark.parametrize("file", FILES)
def test_kernels_compile_for_h100_with_the_scopes_and_widths_they_need(kernels_of, file):
    check(file, kernels_of(file, "sm_90a"))


@pytest.mark.sanitizer
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "sm_90a"])
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile_for_every_architecture(kernels_of, file, architecture):
    check(file, kernels_of(file, architecture))


def test_the_account_tells_the_registers_that_ptxas_gives(nvcc, kernels_of):
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0," not in version:
        pytest.skip("the account's registers are those of nvcc 13.0")
    account = ACCOUNT.read_text()
    rows = re.findall(r"^\| `(\w+)`[^|]*\| `(\w+\.cu)` \| ([\d, ]+) \|", account, re.M)
    assert len(rows) >= 6
    for name, file, told in rows:
        found = {kernel.registers for kernel in kernels_of(file, "sm_90a") if name in kernel.name}
        assert found == {int(number) for number in told.split(",")}, name
