"""Defines the section `monitor.wandb` with W&B's own rules for it; breaking one would lose the run's rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from moe_train.config.problem import Problem

NOT_IN_NAMES = "/\\#?%:"
LONGEST_NAME = 128
LONGEST_TAG = 64


@dataclass
class WandbConfig:
    """Configures Weights & Biases. Without a key or a network the run logs that and continues."""

    mode: Literal["disabled", "online", "offline"] = "disabled"
    project: str = "moe-train"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)

    def check(self, run_name: str) -> Iterator[Problem]:
        """Yields what W&B would refuse in this section and in the name of the run."""
        if self.mode == "disabled":
            return
        for key, name in (("monitor.wandb.project", self.project), ("monitor.wandb.entity", self.entity)):
            yield from _refused_name(key, name or "")
        if len(run_name) > LONGEST_NAME:
            yield Problem(
                "name",
                run_name,
                f"has {len(run_name)} characters, but W&B allows {LONGEST_NAME}",
                "shorten it, or set monitor.wandb.mode=disabled",
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= LONGEST_TAG:
                yield Problem(
                    "monitor.wandb.tags",
                    tag or "''",
                    f"has {len(tag)} characters, but a W&B tag must have 1 to {LONGEST_TAG}",
                    "shorten it, or leave it out",
                )


def _refused_name(key: str, name: str) -> Iterator[Problem]:
    if len(name) > LONGEST_NAME:
        yield Problem(
            key, name, f"has {len(name)} characters, but W&B allows {LONGEST_NAME}", "use a shorter one"
        )
    if refused := [letter for letter in NOT_IN_NAMES if letter in name]:
        yield Problem(
            key,
            name,
            f"has {' '.join(refused)}, which W&B does not allow",
            "use letters, digits, - and _",
        )
