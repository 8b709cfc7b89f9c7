"""Runs the jobs of the local executor, detached from the command that submitted them.

Started as `python -P -m moe_cluster.local.queue N FILE...`.

Each FILE is the state of one job (executor.py): its command, its process, and how it ended. At most N jobs run
concurrently. A cancelled job gets a SIGTERM, saves and ends, or is never started; a SIGTERM to the queue cancels all.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from moe_cluster.atomic import replace_text
from moe_cluster.linux import start_time
from moe_cluster.output import protect_output

POLL_S = 0.2


def main(argv: Sequence[str]) -> int:
    """Run all jobs; returns 0 however they end, which their files record."""
    at_once, waiting = int(argv[0]), [Path(word) for word in argv[1:]]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    signalled: set[Path] = set()
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    while running or waiting:
        for path in [path for path in waiting if stopped or is_cancelled(path)]:
            update(path, exit_code=-int(signal.SIGTERM))
            waiting.remove(path)
        while waiting and len(running) < at_once and not stopped:
            path = waiting.pop(0)
            running[path] = _started(path)
        for path, process in list(running.items()):
            if process.poll() is not None:
                update(path, exit_code=process.returncode)
                del running[path]
            elif path not in signalled and (stopped or is_cancelled(path)):
                process.send_signal(signal.SIGTERM)
                signalled.add(path)
        time.sleep(POLL_S)
    return 0


def cancel(path: Path) -> None:
    """Ask the queue to stop the job of that file, or never to start it. Raises OSError."""
    _cancelled(path).touch()


def is_cancelled(path: Path) -> bool:
    """Returns whether `cancel` was called for that file."""
    return _cancelled(path).exists()


def update(path: Path, **entries: object) -> None:
    """Add entries to a job's file atomically."""
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _cancelled(path: Path) -> Path:
    return path.with_suffix(".cancelled")


def _started(path: Path) -> "subprocess.Popen[bytes]":
    job = json.loads(path.read_text(encoding="utf-8"))
    with path.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            job["command"],
            env={**os.environ, **job["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    update(path, pid=process.pid, start_time=start_time(process.pid))
    return process


if __name__ == "__main__":
    protect_output(is_result=False)
    sys.exit(main(sys.argv[1:]))
