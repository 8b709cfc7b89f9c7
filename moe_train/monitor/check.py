"""Replays the detectors over a run's rows, of this or another version of moe-train, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moe_train.config.schema import Recipe
from moe_train.monitor.alarm import Alarm, Case
from moe_train.monitor.alarms import Alarms
from moe_train.monitor.explain import event
from moe_train.monitor.rows import Row


@dataclass(frozen=True)
class Verdict:
    """Holds what a replay found."""

    alarms: Sequence[dict[str, Any]]
    """Fields of the events `alarm`, each with its step and, where it is over, the step at which that was: `over`."""
    not_measured: Sequence[str]
    """Names what detectors could not look at, as no row has the figures."""

    @property
    def is_bad(self) -> bool:
        """Returns whether there was a warning or worse."""
        return any(alarm["severity"] != "notice" for alarm in self.alarms)


def check(recipe: Recipe, training: Sequence[Row]) -> Verdict:
    """Judges the training rows of a run, oldest first. Rows with nothing to judge are passed over."""
    judge = Alarms(recipe)
    found: list[tuple[Alarm, dict[str, Any]]] = []
    figures: set[str] = set()
    for row in training:
        if not isinstance(row.get("moe"), dict):
            continue
        figures |= {name for name, values in row["moe"].items() if values}
        begun, over = judge.judge(row)
        for alarm in begun:
            found.append((alarm, {"step": row["step"], **event(Case(alarm, recipe, row, judge.rise))}))
        for gone in over:
            for alarm, fields in found:
                if _ends(alarm, gone) and "over" not in fields:
                    fields["over"] = row["step"]
    needs = {detector.name: tuple(detector.needs()) for detector in judge.detectors}
    missing = [
        f"{name}: no row has {' or '.join(needed)}"
        for name, needed in needs.items()
        if training and needed and not figures & {*needed}
    ]
    return Verdict([fields for _, fields in found], missing)


def _ends(alarm: Alarm, gone: Alarm) -> bool:
    """Returns whether the end of some places is that of the whole alarm: it named these and no others."""
    same = alarm.detector == gone.detector and {*alarm.layers} <= {*gone.layers}
    return same and {*alarm.experts} <= {*gone.experts}
