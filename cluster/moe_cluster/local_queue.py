"""Runs the jobs of the local executor, detached from who submitted them: `python -m moe_cluster.local_queue N FILE...`

Each FILE is the state of one job (local_executor.py): its command, and then who runs it and how it ended. N jobs run
at a time. A SIGTERM goes on to the jobs that run, which save and end; the others are not begun.
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

POLL_S = 0.2


def main(argv: Sequence[str]) -> int:
    """Run all jobs; returns 0 whatever became of them: their files say it."""
    at_once, waiting = int(argv[0]), [Path(word) for word in argv[1:]]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        for process in running.values():
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while running or waiting:
        if stopped:
            for path in waiting:
                update(path, exit_code=-int(signal.SIGTERM))
            waiting = []
        while waiting and len(running) < at_once:
            path = waiting.pop(0)
            running[path] = _started(path)
        for path, process in list(running.items()):
            if process.poll() is not None:
                update(path, exit_code=process.returncode)
                del running[path]
        time.sleep(POLL_S)
    return 0


def update(path: Path, **entries: object) -> None:
    """Put entries into a job's file, whole or not at all."""
    content = json.loads(path.read_text()) | entries
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _started(path: Path) -> "subprocess.Popen[bytes]":
    job = json.loads(path.read_text())
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
    sys.exit(main(sys.argv[1:]))
