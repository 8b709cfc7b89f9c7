"""Worker processes of a benchmark: they wait, without using a core, until a line tells them what to measure."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

CORES = 2
"""A benchmark's workers have so many threads together."""


class Workers:
    """Some processes of one script, which form a process group, from the one that started them."""

    def __init__(self, script: str, arguments: Sequence[str], size: int, paths: Sequence[Path] = ()):
        """Starts `script` `size` times; it finds modules in `paths` too."""
        environment = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": str(CORES // size)}
        environment["GOMP_SPINCOUNT"] = "1000"  # as `moe-train run` sets it
        if paths:
            known = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *([known] if known else [])])
        self.workers = [
            subprocess.Popen(
                [sys.executable, script, *arguments],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def ask(self, task: str) -> list[dict[str, Any]]:
        """Returns what each worker measured, in rank order. Raises RuntimeError if one has ended."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{task}\n")
            worker.stdin.flush()
        answers = [worker.stdout.readline() for worker in self.workers if worker.stdout is not None]
        if not all(answers):
            raise RuntimeError(f"a worker ended at the task {task!r}; its error is above")
        return [json.loads(answer) for answer in answers]

    def stop(self) -> None:
        """Ends the workers: they read until their input closes. One that waits for another that failed is killed."""
        for worker in self.workers:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
        for worker in self.workers:
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


class Tasks:
    """The tasks that reach a worker, from inside of it. What libraries print goes to standard error from here on."""

    def __init__(self) -> None:
        self._answers: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def __iter__(self) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
        """Yields each task, and what takes its answer."""
        for line in sys.stdin:
            yield line.strip(), self._answer

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
