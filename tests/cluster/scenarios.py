"""Writes what was promised and what happened in each scenario: the last section of docs/slurm.md and docs/ray.md.

A scenario that was run replaces its own row, so a part of the set can be run again. With MOE_TRAIN_TABLES=DIR the
section is written to DIR/NAME.md, below whatever stands there; without it nothing is written.
"""

import os
import time
from pathlib import Path

SECTION = "## Faults that were tried\n"
HEADING = "| what happens | promised | seen | back at work after | date |\n|---|---|---|---|---|\n"


class Scenarios:
    """Holds the rows of one page's section, by what happens."""

    def __init__(self, name: str, introduction: str) -> None:
        folder = os.environ.get("MOE_TRAIN_TABLES")
        self.path = Path(folder) / f"{name}.md" if folder else None
        self.introduction = introduction

    def add(self, happens: str, promised: str, seen: str, recovery_s: float | None = None) -> None:
        """Records one scenario; `recovery_s` is from the fault to the first step after it."""
        if self.path is None:
            return
        page = self.path.read_text() if self.path.exists() else ""
        page, _, section = page.partition(SECTION)
        rows = _rows(section)
        recovery = "" if recovery_s is None else f"{recovery_s:.0f} s"
        rows[happens] = f"| {happens} | {promised} | {seen} | {recovery} | {time.strftime('%Y-%m-%d')} |\n"
        self.path.write_text(f"{page}{SECTION}\n{self.introduction}\n{HEADING}{''.join(rows.values())}")


def _rows(section: str) -> dict[str, str]:
    lines = [line for line in section.splitlines(keepends=True) if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[1:]}
