"""Checks single fields: the range of each, and values that no field accepts."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from moe_train.config.bounds import bounded_fields
from moe_train.config.problem import Problem
from moe_train.config.schema import Recipe

LONGEST_NAME_BYTES = 200
"""Less than the 255 that file systems allow: a run that is moved aside gets a longer name."""
MOST_THREADS = 1024
"""More than any machine has cores, and less than what a system refuses to start."""
SHORTEST_HANG_S = 5.0


def not_finite(section: object, prefix: str = "") -> Iterator[Problem]:
    """Yields fields set to .nan or .inf, which YAML allows; other rules miss NaN, as comparisons with it are false."""
    for field in fields(section):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            yield from not_finite(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield Problem(key, value, "must be a finite number", f"its default is {field.default}")


def out_of_range(recipe: Recipe) -> Iterator[Problem]:
    """Yields values that are outside their field's range."""
    for key, value, bound in bounded_fields(recipe):
        if problem := bound.problem(key, value):
            yield problem
    if not 0 < recipe.data.validation_fraction < 1:
        yield Problem(
            "data.validation_fraction", recipe.data.validation_fraction, "must be between 0 and 1", "use 0.05"
        )
    if not 0 <= recipe.model.dropout < 1:
        yield Problem("model.dropout", recipe.model.dropout, "must be in [0, 1)", "use 0 or 0.1")
    if not 0 <= recipe.moe.expert_dropout < 1:
        yield Problem(
            "moe.expert_dropout", recipe.moe.expert_dropout, "must be in [0, 1)", "Switch fine-tunes with 0.4"
        )
    if recipe.model.init_scale <= 0:
        yield Problem("model.init_scale", recipe.model.init_scale, "must be above 0", "Switch uses 0.1")
    threads = recipe.job.threads
    if threads is not None and threads > MOST_THREADS:
        yield Problem(
            "job.threads", threads, f"must be at most {MOST_THREADS}", "leave it out to use all cores"
        )
    if not SHORTEST_HANG_S <= recipe.job.hang_s <= recipe.job.timeout_s:
        yield Problem(
            "job.hang_s",
            recipe.job.hang_s,
            f"must be at least {SHORTEST_HANG_S:g}, since workers send a heartbeat every second, and at most "
            f"job.timeout_s={recipe.job.timeout_s:g}, after which a collective fails and the hanging rank is unknown",
            "its default is 60; raise job.timeout_s for a longer one",
        )
    if not _names_a_folder(recipe.name):
        yield Problem(
            "name", repr(recipe.name), "must be a valid folder name", "use letters, digits and dashes"
        )


def empty_text(section: object, prefix: str = "") -> Iterator[Problem]:
    """Yields fields set to empty text, as `key=$VARIABLE` does if the variable is unset."""
    for field in fields(section):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            yield from empty_text(value, f"{key}.")
        elif value == "" and field.default != "" and key != "name":
            default = "null" if field.default is None else field.default
            yield Problem(key, "''", "is empty", f"set it, or leave it out for its default, {default}")


def _names_a_folder(name: str) -> bool:
    short = 0 < len(name.encode()) <= LONGEST_NAME_BYTES
    return short and name.isprintable() and "/" not in name and not name.startswith(".")
