"""Defines learning-rate schedules as pure functions of the step, so that a resume needs no state.

Every schedule rises linearly from 0 over `warmup_steps` and then follows its own curve. `step` counts updates
already made, so the first update of a run without warm-up has the peak rate.
"""

import math
from collections.abc import Callable

from moe_train.config.kinds.optim import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    InverseSqrtScheduleConfig,
    LinearScheduleConfig,
)

Schedule = Callable[[int], float]
"""Maps the number of updates made to the factor of the peak rate for the next one."""


def constant(config: ConstantScheduleConfig, *, steps: int) -> Schedule:
    """Keeps the peak rate."""
    return _warm(config.warmup_steps, lambda _: 1.0)


def cosine(config: CosineScheduleConfig, *, steps: int) -> Schedule:
    """Follows half a cosine down to `final_fraction` at the last step   # SGDR (1608.03983) eq. 5."""
    span, low = max(1, steps - config.warmup_steps), config.final_fraction
    return _warm(
        config.warmup_steps,
        lambda done: low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / span))),
    )


def linear(config: LinearScheduleConfig, *, steps: int) -> Schedule:
    """Falls linearly to `final_fraction` at the last step."""
    span, low = max(1, steps - config.warmup_steps), config.final_fraction
    return _warm(config.warmup_steps, lambda done: 1 - (1 - low) * min(1.0, done / span))


def inverse_sqrt(config: InverseSqrtScheduleConfig, *, steps: int) -> Schedule:
    """Follows sqrt(k / max(step, k)), k the end of warm-up and hold   # T5 (1910.10683) sec. 3.1.2."""
    warmup, start = config.warmup_steps, max(1, config.warmup_steps + config.hold_steps)
    return _warm(warmup, lambda done: math.sqrt(start / max(start, warmup + done)))


def _warm(warmup_steps: int, curve: Schedule) -> Schedule:
    """Rises linearly, then follows `curve` of the steps since."""
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else curve(step - warmup_steps)
