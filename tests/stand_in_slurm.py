"""Programs that stand in for Slurm's, so that a test can say what they answer. Real clusters are in tests/cluster."""

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUEUED = "JobId=41 JobName=small\n   JobState=PENDING Reason=Resources\n   NodeList=\n"


def write_programs(
    folder: Path, sbatch: str = "sleep 1; echo $$", scontrol: str = f"echo '{QUEUED}'"
) -> None:
    """Put them into `folder`; the two texts are what their scripts do once they have read what they were given."""
    for name, text in (("sbatch", sbatch), ("scontrol", scontrol), ("scancel", 'echo "$1"')):
        path = folder / name
        called = f'echo "$@" >>"{folder}/{name}.called"'
        path.write_text(f"#!/bin/bash\n{called}\n[ {name} = sbatch ] && cat >/dev/null\n{text}\n")
        path.chmod(0o755)


def called(folder: Path, name: str) -> list[str]:
    """The arguments of every call of a program, in order."""
    path = folder / f"{name}.called"
    return path.read_text().splitlines() if path.exists() else []


def surroundings(folder: Path) -> Mapping[str, str]:
    """The environment of a terminal that finds these programs, and none of the user's own settings."""
    return {
        **os.environ,
        "PATH": f"{folder}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cluster", ROOT / "kernels"))),
        "XDG_CONFIG_HOME": str(folder),
    }


def begin(folder: Path, *words: str, largest_file: int = resource.RLIM_INFINITY) -> "subprocess.Popen[str]":
    """Start `moe-train WORDS` as a process of its own; no file that it writes gets larger than so many bytes."""
    return subprocess.Popen(
        [sys.executable, "-m", "moe_train.cli", *words],
        env=surroundings(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
    )
