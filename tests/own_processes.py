"""The processes that a test caused, however deep, told by a token that all of them carry in their environment."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path

VARIABLE = "MOE_TRAIN_TEST_TOKEN"


class OwnProcesses:
    """Whoever is started with `environment` added to its own, and all its descendants."""

    def __init__(self) -> None:
        self.environment = {VARIABLE: uuid.uuid4().hex}

    def living(self) -> list[int]:
        """Process ids, ascending; zombies have no environment and do not count."""
        mark = f"{VARIABLE}={self.environment[VARIABLE]}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue
        return sorted(found)


def wait_for(condition: Callable[[], bool], every_s: float = 0.02, timeout_s: float = 90.0) -> None:
    """Return once `condition` holds; fail after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"nothing came of it in {timeout_s:.0f} s"
        time.sleep(every_s)
