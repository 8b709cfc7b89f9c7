"""Checks the shell commands that a site or a user puts before a job's command."""

import subprocess
from collections.abc import Sequence

from moe_cluster.errors import JobError


def require_shell(setup: Sequence[str]) -> None:
    """Raise JobError for lines that leave a quote or a block open: the rest of a script would become a part of it."""
    try:
        checked = subprocess.run(
            ["bash", "-n"], input="\n".join(setup), capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # no bash where the job is submitted
        return
    if checked.returncode:
        words = checked.stderr.strip().partition("\n")[0]
        raise JobError(f"--setup {setup[-1]}: is incomplete shell ({words}); correct the setup commands")
