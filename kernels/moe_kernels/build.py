"""Compiles a library on first use and caches it by what it was built from.

The key is a hash of the sources, the command, the compiler's version and the processor's features, since code may be
built for this very processor; so a cache on a shared disk serves different machines. A file lock lets one process build
while the others wait.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from moe_kernels.errors import KernelError

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / "csrc"
EMULATION = Path(__file__).parents[1] / "emulation"
BUILD_TIMEOUT_S = 900


def library_path(kind: str) -> Path:
    """Returns the shared library of `kind` (cpu, emulated, cuda), and builds it if it does not exist yet.

    Raises KernelError: no compiler, no sources, or the compiler's own message.
    """
    command, sources = _recipe(kind)
    target = cache_folder() / f"{kind}-{_key(command, sources)}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(command, sources, target)
    return target


def cache_folder() -> Path:
    """Returns the folder of cached libraries, beside the other things that moe-train caches."""
    root = os.path.expanduser(os.environ.get("MOE_TRAIN_CACHE") or "~/.cache/moe-train")
    if root.startswith("~"):
        raise KernelError(
            f"MOE_TRAIN_CACHE={root}: there is no such home folder; set MOE_TRAIN_CACHE or HOME"
        )
    return Path(root) / "kernels"


def _recipe(kind: str) -> tuple[list[str], list[Path]]:
    kernels = sorted(SOURCES.glob("*.cu"))
    if kind == "cpu":
        flags = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno"]
        return [_tool("g++"), *flags, "-shared", "-fPIC"], sorted((SOURCES / "cpu").glob("*.cpp"))
    if kind == "emulated":
        flags = ["-std=c++17", "-O2", "-pthread", "-Wno-attributes", f"-I{EMULATION}", "-x", "c++"]
        return [_tool("g++"), *flags, "-shared", "-fPIC"], kernels
    if kind == "cuda":
        nvcc = _tool("nvcc")
        # PyPI's wheels have the runtime library in lib/, but their nvcc looks for it in lib64/.
        runtime = f"-L{Path(nvcc).resolve().parents[1] / 'lib'}"
        flags = ["-std=c++17", "-O3", "-arch=native", "--threads=0", "-Xcompiler=-fPIC", runtime]
        return [nvcc, *flags, "-shared"], kernels
    raise KernelError(f"there is no kernel library named {kind!r}; choose cpu, emulated or cuda")


def _tool(name: str) -> str:
    compiler = (os.environ.get("CXX") if name == "g++" else None) or name
    path = shutil.which(compiler) or (_nvcc_of_the_wheels() if name == "nvcc" else None)
    if path is None:
        raise KernelError(f"{compiler} was not found; install it to build these kernels")
    return path


def _nvcc_of_the_wheels() -> str | None:
    """Returns the nvcc of PyPI's wheels (the extra `nvcc`), if installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    candidates = [folder / "cu13" / "bin" / "nvcc" for folder in folders]
    return next((str(path) for path in candidates if path.exists()), None)


def _key(command: list[str], sources: list[Path]) -> str:
    if not sources:
        raise KernelError(f"no sources of this library in {SOURCES}")
    digest = hashlib.sha256()
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True)
    if version.returncode != 0:
        name = Path(command[0]).name
        raise KernelError(f"{name} --version returned {version.returncode}; install a working compiler")
    digest.update("\0".join([*command, version.stdout, platform.machine(), _processor_features()]).encode())
    folders = (SOURCES, EMULATION) if f"-I{EMULATION}" in command else (SOURCES,)
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:20]


def _processor_features() -> str:
    """Returns the features that `-march=native` and `-arch=native` depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _first_error(output: str) -> str:
    """Returns the line of a compiler's output that names the cause."""
    lines = output.splitlines() or ["no output"]
    return next((line for line in lines if "error" in line.lower()), lines[0]).strip()


def _compile(command: list[str], sources: list[Path], target: Path) -> None:
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    began = time.monotonic()
    log.info("building the %s kernels once, to be kept in %s", target.name.split("-")[0], target.parent)
    try:
        result = subprocess.run(
            [*command, *map(str, sources), "-o", str(unfinished)],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        if result.returncode != 0:
            raise KernelError(f"{command[0]} failed: {_first_error(result.stderr)}\n{result.stderr[-4000:]}")
        os.replace(unfinished, target)
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"{command[0]} took more than {BUILD_TIMEOUT_S} s, so the build was stopped"
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
    log.info("built in %.1f s", time.monotonic() - began)
