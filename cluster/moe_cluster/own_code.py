"""Starts Python processes that run the same code as their parent, in any working directory.

`python -m` puts the working directory first on the module path, so a `queue.py` or an old `moe_train` there would
shadow the intended module. Every process of ours starts with `-P`, which leaves that directory out.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("moe_train", "moe_cluster", "moe_kernels")


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Returns the command that runs a module of ours, or of an installed package, and never one of the working
    directory."""
    return [python, "-P", "-m", module, *arguments]


def with_own_code(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` with a PYTHONPATH that leads a new process of this Python to this process's code.

    Entries of the user's become absolute, since a process may start in another directory. What `-P` leaves out is added
    if our own code lies there: a command that was itself started with `python -m` in a clone.
    """
    given = environment.get("PYTHONPATH", "")
    entries = [*_folders_before_library(), *map(os.path.abspath, given.split(os.pathsep) if given else ())]
    if not entries:
        return dict(environment)
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(entries))}


def package_folders() -> list[str]:
    """Returns the folders of our packages, found without importing them."""
    return [str(Path(origin).parent) for name in PACKAGES if (origin := _origin(name))]


def _folders_before_library() -> list[str]:
    """Returns the folders of our packages that this process searches before the standard library. A new process
    searches those after it, such as site-packages, by default."""
    library = str(Path(os.__file__).parent)
    before = sys.path[: sys.path.index(library)] if library in sys.path else []
    searched = {os.path.abspath(entry) for entry in before}
    folders = dict.fromkeys(str(Path(folder).parent) for folder in package_folders())
    return [folder for folder in folders if folder in searched]


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return spec.origin if spec else None
