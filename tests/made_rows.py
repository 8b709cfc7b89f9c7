"""Training rows made by hand, by which detectors are tried."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_train.config.load import load_recipe
from moe_train.config.schema import Recipe
from moe_train.monitor.alarm import Alarm
from moe_train.monitor.alarms import Alarms

EVEN = [250] * 8
OF_THE_ROW = ("loss", "loss_max", "lr", "grad_norm", "skipped_updates")

Found = list[tuple[int, Alarm]]
"""Alarms with the step of their row."""


def recipe_of(*overrides: str) -> Recipe:
    """Two MoE layers of 8 experts, with or without some keys of its own."""
    return load_recipe("recipes/switch/tiny.yaml", ("steps=1000", *overrides))


def row(step: int, *loads: Sequence[int], **figures: Any) -> dict[str, Any]:
    """A row with the loads of two layers, even ones if none are given, and other figures of `moe` or of the row."""
    own = {name: figures.pop(name) for name in OF_THE_ROW if name in figures}
    moe = {"load": list(loads) or [EVEN, EVEN], **figures}
    return {"step": step, "loss": 4.0, "lr": 1e-3, "grad_norm": 1.0, "moe": moe} | own


def judged(recipe: Recipe, rows: Iterable[Mapping[str, Any]]) -> tuple[Found, Found]:
    """The alarms that begin, and those that end."""
    alarms = Alarms(recipe)
    begun: Found = []
    over: Found = []
    for each in rows:
        new, gone = alarms.judge(each)
        begun += [(each["step"], alarm) for alarm in new]
        over += [(each["step"], alarm) for alarm in gone]
    return begun, over
