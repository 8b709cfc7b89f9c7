"""Describes how a node's workers are started inside a job, e.g. in a container; the batch script passes it on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

STEP_VARIABLE = "MOE_TRAIN_STEP"
"""A Step, as JSON; absent: as the launcher itself was started."""


@dataclass(frozen=True)
class Step:
    """Holds the options and words around the command of a node's agent."""

    srun: tuple[str, ...] = ()
    """Further options of `srun`."""
    prefix: tuple[str, ...] = ()
    """Words before the command."""
    python: str = ""
    """The Python in a container; empty: the launcher's own."""

    def text(self) -> str:
        """Returns it as JSON for STEP_VARIABLE; empty for the defaults."""
        return json.dumps(asdict(self)) if self != Step() else ""


def read_step(environment: Mapping[str, str]) -> Step:
    """Returns the step that the batch script describes."""
    content = json.loads(environment.get(STEP_VARIABLE, "{}"))
    return Step(tuple(content.get("srun", ())), tuple(content.get("prefix", ())), content.get("python", ""))
