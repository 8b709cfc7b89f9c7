"""Debian packages, fetched and unpacked without installing them and without being root."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from moe_train.errors import DataError

APT_GET = ("apt-get", "-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30", "download")
TIMEOUT_S = 900


@dataclass(frozen=True)
class Package:
    """A package as it was fetched."""

    version: str
    sha256: str
    """Of the .deb file."""


def fetch(name: str, folder: Path) -> Package:
    """Download package `name` and unpack its files into `folder`/`name`.

    Raises DataError if apt-get is missing, does not know the package or cannot reach its servers.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(
                f"data.corpus.kind=debian: needs {tool}, which this machine does not have; "
                "run `moe-train data build` on Debian or Ubuntu, or use data.corpus.kind=files"
            )
    _run(name, [*APT_GET, name], folder)
    deb = next(folder.glob(f"{name}_*.deb"))
    _run(name, ["dpkg-deb", "-x", str(deb), str(folder / name)], folder)
    drop_links_out(folder / name)
    with deb.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    version = deb.name.split("_")[1].replace("%3a", ":")
    return Package(version, digest)


def drop_links_out(root: Path) -> None:
    """Remove the links that lead out of an unpacked package: here they would lead to files of this machine."""
    for path in root.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            path.unlink()


def _run(package: str, command: list[str], folder: Path) -> None:
    """Run `command` in `folder`; its last line on stderr explains a failure."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"no end after {TIMEOUT_S} s"
    else:
        if done.returncode == 0:
            return
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise DataError(
        f"data.corpus.packages: {package} cannot be fetched ({command[0]}: {reason}); check the network, run "
        "`apt-get update` as root, or leave the package out with data.corpus.packages=[...]"
    )
