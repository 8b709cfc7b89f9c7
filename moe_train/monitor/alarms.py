"""Turns what detectors see into alarms: with warm-up, persistence and hysteresis, once for all detectors.

An alarm begins when a place was ill in as many windows in a row, and over as many steps, as its detector asks for, and
is over when the place was well in as many. Nothing is judged before the learning rate is up and the router has had
time to spread its tokens, nor for as long after the recipe has changed how tokens are routed.
All of it is a pure function of the training rows that all ranks know, and its state is saved with checkpoints.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.monitor.alarm import Alarm, Rise, Severity
from moe_train.monitor.detectors.detector import RUN, WELL, Detector, Place, Sight
from moe_train.monitor.detectors.group import detectors_of
from moe_train.monitor.detectors.window import Window, Windows, of_one_row
from moe_train.monitor.rows import Row

WARM_UP_STEPS = (60, 200)
"""Fewest and most steps of a warm-up. A young router leaves up to 40% of its experts unused at first, and recovers."""
WARM_UP_SHARE = 6000
"""Assignments an expert, at even loads, that a router takes to spread its tokens: in 23 healthy runs of 2 to 64 experts
(tests/traces) none was left out for three windows after so many."""
RISEN = 1.5
"""The learning rate has risen if it is more than this many times that of the row before."""


@dataclass
class Course:
    """Follows one place through the windows."""

    ill: int = 0
    """Windows in a row in which it was ill."""
    well: int = 0
    since: int = 0
    is_raised: bool = False


class Alarms:
    """Has every training row looked at, and returns the alarms that begin and end with it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.detectors = detectors_of(recipe)
        self._windows = Windows()
        self._courses: dict[str, dict[Place, Course]] = defaultdict(dict)
        self._last_step, self._rate = 0, 0.0
        self.rise: Rise | None = None
        expected, warm_up = recipe.moe.router.expectations(), warm_up_steps(recipe)
        self._begins = expected.begins
        self._changes = [expected.begins, *expected.changes]
        self._quiet = [(step, step + warm_up) for step in self._changes]

    @property
    def running(self) -> list[str]:
        """Returns the detectors with an alarm that is not over."""
        return [
            name
            for name, courses in self._courses.items()
            if any(course.is_raised for course in courses.values())
        ]

    def judge(self, row: Row) -> tuple[list[Alarm], list[Alarm]]:
        """Takes a training row in; returns the alarms that begin with it, and those that are over."""
        first, step = self._last_step + 1, row["step"]
        self._last_step = step
        self._follow_rate(row)
        if any(first <= change < step for change in self._changes if change):
            self._windows.clear()
            for detector in self.detectors:
                detector.clear()
        begun, over = [], []
        looks = {"rows": of_one_row(row, first), "windows": self._windows.add(row, first)}
        for detector in self.detectors:
            window = looks[detector.sees]
            if window is not None:
                new, gone = self._follow(
                    detector, window, only=detector.early if self._is_quiet(window) else None
                )
                begun += new
                over += gone
        return begun, over

    def begin_after(self, step: int) -> None:
        """Begins anew in a run that has made `step` updates."""
        self._last_step = step

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be known after a resume, JSON-ready."""
        courses = {
            name: [
                [*place, course.ill, course.well, course.since, course.is_raised]
                for place, course in of.items()
            ]
            for name, of in self._courses.items()
        }
        return {
            "last_step": self._last_step,
            "rate": self._rate,
            "rise": None if self.rise is None else [self.rise.step, self.rise.before, self.rise.after],
            "windows": self._windows.state_dict(),
            "courses": courses,
            "detectors": {detector.name: detector.state_dict() for detector in self.detectors},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from where `state` was taken; a detector that is new to the run begins anew."""
        self._last_step, self._rate = state["last_step"], state["rate"]
        self.rise = Rise(*state["rise"]) if state["rise"] else None
        self._windows.load_state_dict(state["windows"])
        self._courses.clear()
        for name, courses in state["courses"].items():
            self._courses[name] = {
                (layer, expert): Course(ill, well, since, is_raised)
                for layer, expert, ill, well, since, is_raised in courses
            }
        for detector in self.detectors:
            if detector.name in state["detectors"]:
                detector.load_state_dict(state["detectors"][detector.name])

    def _follow_rate(self, row: Row) -> None:
        rate, step = row.get("lr") or 0.0, row["step"]
        if self._rate and rate > RISEN * self._rate and step > self.recipe.optim.schedule.warmup_steps + 1:
            self.rise = Rise(step, self._rate, rate)
        self._rate = rate

    def _is_quiet(self, window: Window) -> bool:
        """Returns whether a part of the window belongs to a warm-up."""
        began = window.first_step > self._begins
        return not began or any(
            window.first_step <= end and window.step > begin for begin, end in self._quiet
        )

    def _follow(
        self, detector: Detector, window: Window, only: Sequence[Severity] | None
    ) -> tuple[list[Alarm], list[Alarm]]:
        """Returns the alarms that begin and end; `only` limits them to illnesses that warm-up does not excuse."""
        if only == () or (only and window.first_step <= self._begins and detector.sees == "windows"):
            return [], []
        courses = self._courses[detector.name]
        begun: list[tuple[Place, Sight, int]] = []
        over: list[tuple[Place, Sight, int]] = []
        seen = detector.look(window)
        if detector.omits_well:
            seen = {**dict.fromkeys(courses, WELL), **seen}
        for place, sight in seen.items():
            course = courses.get(place) or Course()
            if sight.is_ill and (only is None or sight.severity in only):
                course.since = course.since if course.ill else window.first_step
                course.ill, course.well = course.ill + 1, 0
                is_lasting = (
                    course.ill >= detector.windows and window.step - course.since + 1 >= detector.steps
                )
                if is_lasting and not course.is_raised:
                    course.is_raised = True
                    begun.append((place, sight, course.since))
            else:
                course.ill, course.well = 0, course.well + 1 if sight.is_well else 0
                if course.is_raised and course.well >= detector.windows:
                    course.is_raised = False
                    over.append((place, sight, course.since))
            if course.ill or course.is_raised:
                courses[place] = course
            else:
                courses.pop(place, None)
        return list(_alarms(detector, window, begun)), list(_alarms(detector, window, over))


def warm_up_steps(recipe: Recipe) -> int:
    """Returns the number of steps in which a young router is not judged."""
    fewest, most = WARM_UP_STEPS
    spec = spec_of(recipe)
    tokens = recipe.data.global_batch * min((stack.length for stack in spec.stacks if stack.moe), default=1)
    share = tokens * recipe.moe.router.num_choices / max(spec.num_experts, default=1)
    spreading = math.ceil(WARM_UP_SHARE / share) if spec.num_experts else 0
    return max(recipe.optim.schedule.warmup_steps, min(max(spreading, fewest), most))


def _alarms(detector: Detector, window: Window, seen: Sequence[tuple[Place, Sight, int]]) -> Iterator[Alarm]:
    """Yields one alarm for each layer with experts that are ill, and one for all layers that are ill as wholes."""
    by_layer: dict[int, list[tuple[Place, Sight, int]]] = defaultdict(list)
    for entry in seen:
        (layer, expert), *_ = entry
        by_layer[layer if expert >= 0 else -1].append(entry)
    for layer, entries in sorted(by_layer.items()):
        experts = [place[1] for place, *_ in entries] if layer >= 0 else []
        layers = sorted({place[0] for place, *_ in entries if place != RUN})
        worst = max((sight for _, sight, _ in entries), key=_badness)
        yield Alarm(
            detector.name,
            worst.severity,
            layers,
            experts,
            min(since for *_, since in entries),
            worst.value,
            worst.limit,
        )


def _badness(sight: Sight) -> float:
    """Returns how far a value is beyond its limit, on the side on which it is."""
    if not math.isfinite(sight.value) or not sight.limit or not sight.value:
        return math.inf
    ratio = abs(sight.value / sight.limit)
    return max(ratio, 1 / ratio)
