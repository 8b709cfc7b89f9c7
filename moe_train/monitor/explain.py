"""Puts an alarm into words: where it is, what is seen, what may cause it, and what to change.

Each detector has its own words; this adds what holds for all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from moe_train.config.resolve import spec_of
from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.group import DETECTORS

MOST_NAMED = 8
"""Layers or experts that a sentence names; more are said by their number."""
NEAR = 200
"""Steps after a rise of the learning rate within which it is named as a cause."""

_DETECTORS = {detector.name: detector for detector in DETECTORS}


def event(case: Case) -> dict[str, Any]:
    """Returns the fields of the event `alarm`."""
    detector = _DETECTORS[case.alarm.detector]
    return case.alarm.as_fields() | {
        "message": f"{_where(case)} {detector.describe(case)}, since step {case.alarm.since}",
        "causes": [*_rate_rose(case), *detector.causes(case)],
        "advice": list(detector.advice(case)),
    }


def _where(case: Case) -> str:
    alarm = case.alarm
    if not alarm.layers:
        return "the run:"
    names = spec_of(case.recipe).moe_layers
    layers = [str(names[layer]) if layer < len(names) else f"#{layer}" for layer in alarm.layers]
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {_listed(layers)}"
    if not alarm.experts:
        return f"{where}:"
    experts = [str(expert) for expert in alarm.experts]
    named = f"expert {experts[0]}" if len(experts) == 1 else f"experts {_listed(experts)}"
    return f"{where}: {named}"


def _listed(words: Sequence[str]) -> str:
    if len(words) > MOST_NAMED:
        return f"{', '.join(words[:MOST_NAMED])} and {len(words) - MOST_NAMED} more"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _rate_rose(case: Case) -> Iterator[str]:
    rise, since = case.rise, case.alarm.since
    if rise is not None and rise.step <= case.row["step"] and since - rise.step <= NEAR:
        yield f"the learning rate rose from {rise.before:.3g} to {rise.after:.3g} at step {rise.step}"
