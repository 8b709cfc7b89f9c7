"""Finds settings that the run never reaches with its number of steps.

`show` prints these notes with the others (`notes.py`); `run`, `submit` and `sweep` print them when they start.
"""

import math
from collections.abc import Iterator

from moe_train.config.kinds.optim import InverseSqrtScheduleConfig
from moe_train.config.schema import CheckpointConfig, Recipe


def timing_notes(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence for each key that has no effect within `steps`; `recipe` must have no problems."""
    yield from _schedule(recipe)
    yield from _intervals(recipe)
    yield from _kept_checkpoints(recipe.checkpoint, recipe.steps)
    yield from _rollback(recipe)


def _schedule(recipe: Recipe) -> Iterator[str]:
    schedule, steps, lr = recipe.optim.schedule, recipe.steps, recipe.optim.lr
    warmup = schedule.warmup_steps
    key = f"optim.schedule.warmup_steps={warmup}"
    if warmup > steps:
        yield (
            f"{key}: the warm-up is longer than the run's steps={steps}, so the learning rate ends at "
            f"{lr * steps / warmup:.3g} and never reaches optim.lr={lr:g}; lower it or raise steps"
        )
    elif warmup == steps and warmup > 0:
        yield (
            f"{key}: the warm-up takes all steps={steps} of the run, so the rate reaches optim.lr={lr:g} at the "
            f"last step and nothing is left of the {schedule.kind} schedule; lower it or raise steps"
        )
    elif isinstance(schedule, InverseSqrtScheduleConfig) and 0 < schedule.hold_steps >= steps - warmup:
        yield (
            f"optim.schedule.hold_steps={schedule.hold_steps}: the run ends at steps={steps}, before the learning rate "
            "falls; lower it, or use optim.schedule.kind=constant"
        )


def _intervals(recipe: Recipe) -> Iterator[str]:
    """Yields intervals that were set explicitly and are longer than the run."""
    defaults, steps = Recipe(), recipe.steps
    for key, value, default, effect in (
        ("log_every", recipe.log_every, defaults.log_every, "metrics.jsonl has one training row, the last"),
        (
            "validate_every",
            recipe.validate_every,
            defaults.validate_every,
            "validation is at the start and the end",
        ),
        (
            "checkpoint.every",
            recipe.checkpoint.every,
            defaults.checkpoint.every,
            "the end is the only checkpoint",
        ),
    ):
        if value > steps and value != default:
            yield f"{key}={value}: is longer than the run's steps={steps}, so {effect}"


def _kept_checkpoints(checkpoint: CheckpointConfig, steps: int) -> Iterator[str]:
    every, kept = checkpoint.every, checkpoint.keep_every
    if kept is None:
        return
    key = f"checkpoint.keep_every={kept}"
    if checkpoint.keep_last == 0:
        yield f"{key}: has no effect, because checkpoint.keep_last=0 keeps all checkpoints"
    elif kept > steps:
        yield f"{key}: is longer than the run's steps={steps}, so it keeps none"
    elif every == 0:
        yield f"{key}: has no effect, because checkpoint.every=0 writes no checkpoint before the end"
    elif kept % every:
        both = math.lcm(kept, every)
        which = "none" if both > steps else f"only one every {both} steps"
        yield (
            f"{key}: is not a multiple of checkpoint.every={every}, so {which} is kept forever; use a multiple of "
            f"{every}"
        )


def _rollback(recipe: Recipe) -> Iterator[str]:
    stability, steps = recipe.stability, recipe.steps
    if not stability.rollback:
        return
    if stability.spike_window >= steps:
        yield (
            f"stability.spike_window={stability.spike_window}: the run ends at steps={steps}, before there are that "
            "many losses, so no spike is ever detected; lower it, or set stability.rollback=false"
        )
    if recipe.checkpoint.every >= steps:
        yield (
            f"stability.rollback=true: checkpoint.every={recipe.checkpoint.every} writes none before the end at "
            f"steps={steps}, so there is nothing to roll back to; lower it"
        )
