"""Downloads and unpacks Debian packages without installing them and without root."""

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
    """Identifies a package that was downloaded."""

    version: str
    sha256: str
    """Of the .deb file."""


def fetch(name: str, folder: Path) -> Package:
    """Downloads package `name` and unpacks its files into `folder`/`name`.

    Raises DataError if apt-get is missing, does not find the package or cannot reach its servers.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(
                f"data.corpus.kind=debian: needs {tool}, which is not installed on this machine; "
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
    """Removes the links that lead out of an unpacked package, since they would point to files of this machine."""
    for path in root.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            path.unlink()


def _run(package: str, command: list[str], folder: Path) -> None:
    """Runs `command` in `folder`; its last line on stderr explains a failure."""
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"timed out after {TIMEOUT_S} s"
    else:
        if result.returncode == 0:
            return
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    raise DataError(
        f"data.corpus.packages: {package} cannot be fetched ({command[0]}: {reason}); check the network, run "
        "`apt-get update` as root, or leave the package out with data.corpus.packages=[...]"
    )
