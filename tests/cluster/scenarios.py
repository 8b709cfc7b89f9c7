"""What was promised and what was seen in each scenario, as the table of a page below docs/.

A scenario that was run replaces its own row, so a part of the set can be run again. With MOE_TRAIN_TABLES=DIR the
page is DIR/operations-NAME.md; without it nothing is written.
"""

import os
import time
from pathlib import Path

HEADING = "| what happens | promised | seen | back at work after | date |\n|---|---|---|---|---|\n"


class Scenarios:
    """The rows of one page, by what happens."""

    def __init__(self, name: str, introduction: str) -> None:
        folder = os.environ.get("MOE_TRAIN_TABLES")
        self.path = Path(folder) / f"operations-{name}.md" if folder else None
        self.introduction = introduction

    def add(self, happens: str, promised: str, seen: str, recovery_s: float | None = None) -> None:
        """Put down one scenario; `recovery_s` is from the fault to the first step after it."""
        if self.path is None:
            return
        rows = self._rows()
        recovery = "" if recovery_s is None else f"{recovery_s:.0f} s"
        rows[happens] = f"| {happens} | {promised} | {seen} | {recovery} | {time.strftime('%Y-%m-%d')} |\n"
        self.path.write_text(f"{self.introduction}\n{HEADING}{''.join(rows.values())}")

    def _rows(self) -> dict[str, str]:
        if self.path is None or not self.path.exists():
            return {}
        lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.startswith("| ")]
        return {line.split(" | ")[0].removeprefix("| "): line for line in lines[1:]}
