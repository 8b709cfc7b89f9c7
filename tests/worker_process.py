"""A worker's Process around a few lines of a test, in a Python of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = [str(ROOT), str(ROOT / "cluster")]


def in_a_process(
    body: str, run_dir: Path, before: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the lines of `body` inside a Process of attempt 1 of `run_dir`, after those of `before`."""
    code = (
        f"import os, sys; sys.path[:0] = {PATHS!r}\n"
        f"from pathlib import Path\nfrom moe_train.worker.process import Process\n{before}\n"
        f"with Process.of_worker(Path({str(run_dir)!r}), os.environ) as process:\n{textwrap.indent(body, '    ')}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
