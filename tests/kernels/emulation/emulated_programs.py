"""Builds and runs the drivers: the unmodified .cu files, emulated, and a program that checks their results.

Programs and their parts are kept in the cache of kernel libraries by what they were made of, so that only the first
test run after a change compiles. The result of a run is a word: `right`, or how it went wrong.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from conftest import require_tool

from moe_kernels.build import EMULATION, SOURCES, cache_folder

HERE = Path(__file__).parent
RACE_CHECKER = "-fsanitize=thread"
FLAGS = ("-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Wno-attributes", "-Wno-unknown-pragmas")
BUILD_TIMEOUT_S, RUN_TIMEOUT_S = 600, 120


@dataclass(frozen=True)
class Program:
    """A driver, and the kernel files under it: those of one tuple are compiled together, which is faster."""

    driver: str
    kernels: tuple[tuple[str, ...], ...]


EXCHANGE = Program(
    "driver.cpp", (("protocol.cu", "plan.cu", "exchange.cu", "dispatch.cu", "send.cu", "pull.cu"),)
)
STATISTICS = Program("statistics_driver.cpp", (("router.cu",), ("balance.cu",), ("uniform.cu",)))


@dataclass(frozen=True)
class Run:
    """One run of a driver: `word` is right, wrong, race, hang or crash."""

    word: str
    output: str


def build(program: Program, *flags: str, sources: Path = SOURCES, mutants_to: Path | None = None) -> Path:
    """The driver with the kernels in `sources`, compiled if need be; what is not kept yet goes to `mutants_to`."""
    folder = mutants_to or _kept()
    driver = _compiled(HERE / program.driver, _driver_headers(), flags, SOURCES, _kept(), True)
    headers = [path for path in sources.iterdir() if path.suffix in (".cuh", ".h")] + [*EMULATION.iterdir()]
    parts = [driver]
    for number, files in enumerate(program.kernels):
        whole = folder / f"kernels-{number}-{os.getpid()}.cpp"
        folder.mkdir(parents=True, exist_ok=True)
        whole.write_text("".join(f'#line 1 "{file}"\n{(sources / file).read_text()}' for file in files))
        parts.append(_compiled(whole, headers, flags, sources, folder, mutants_to is None))
        whole.unlink()
    return _linked(parts, flags, folder)


def build_one(source: Path, *flags: str) -> Path:
    """A program of a single .cu file."""
    headers = [path for path in SOURCES.iterdir() if path.suffix in (".cuh", ".h")] + [*EMULATION.iterdir()]
    return _linked([_compiled(source, headers, flags, SOURCES, _kept(), True)], flags, _kept())


def changed_copy(folder: Path, file: str, text: str) -> Path:
    """The sources of the kernels in `folder`, but for one file."""
    sources = folder / "csrc"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("cpu"))
    (sources / file).write_text(text)
    return sources


def make_grids_small(sources: Path) -> None:
    """Give the router a grid of two blocks instead of hundreds, in a copy of the sources.

    The race checker holds a thread of its own for every CUDA thread of a grid, some thousands at most; and with two
    blocks few tokens are enough for several trips of each warp.
    """
    router = sources / "router.cu"
    smaller, found = re.subn(r"MOST_BLOCKS = 4 \* 132;.*", "MOST_BLOCKS = 2;", router.read_text())
    assert found == 1, "router.cu no longer says how many blocks it has at most"
    router.write_text(smaller)


def run(
    program: Path, *arguments: str, seed: int = 1, blocks: int = 1, timeout_s: int = RUN_TIMEOUT_S
) -> Run:
    """Run a program that prints `right` and exits with 0 where everything is."""
    environment = {
        **os.environ,
        "EMU_SEED": str(seed),
        "EMU_SMS": str(blocks),
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    try:
        done = subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as hang:
        return Run("hang", str(hang))
    output = done.stdout + done.stderr
    if "WARNING: ThreadSanitizer" in output:
        return Run("race", output)
    if done.returncode == 0 and done.stdout.endswith("right\n"):
        return Run("right", output)
    return Run("wrong" if "WRONG" in done.stdout else "crash", output)


def _kept() -> Path:
    return cache_folder() / "tests"


def _driver_headers() -> list[Path]:
    """A driver sees the interface and the layout, never a kernel: mutants share it."""
    return [SOURCES / "interface.h", SOURCES / "layout.h", *HERE.glob("*.h")]


def _compiled(
    source: Path, headers: list[Path], flags: tuple[str, ...], include: Path, folder: Path, no_warnings: bool
) -> Path:
    """The object file of a source, from the cache or, made now, in `folder`."""
    digest = hashlib.sha256("\0".join((*FLAGS, *flags)).encode())
    digest.update(source.read_bytes())
    for path in sorted(headers):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"{digest.hexdigest()[:20]}.o"
    if (_kept() / name).exists():
        return _kept() / name
    compiler = require_tool("g++", "g++")
    folders = [f"-I{path}" for path in (include, EMULATION, HERE)]
    command = [compiler, *FLAGS, *flags, *folders, "-x", "c++", "-c", str(source)]
    return _made(command, folder / name, no_warnings)


def _linked(parts: list[Path], flags: tuple[str, ...], folder: Path) -> Path:
    digest = hashlib.sha256("\0".join((*flags, *(part.name for part in parts))).encode())
    name = f"emulated-{digest.hexdigest()[:20]}"
    if (_kept() / name).exists():
        return _kept() / name
    command = [require_tool("g++", "g++"), *flags, "-pthread", *(str(part) for part in parts)]
    return _made(command, folder / name, True)


def _made(command: list[str], target: Path, no_warnings: bool) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    command = [*command, "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"
    assert not (no_warnings and "warning" in done.stderr), done.stderr
    os.replace(unfinished, target)
    return target
