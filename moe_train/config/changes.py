"""Compares two recipes, and decides which of their differences a resume must refuse.

A resume keeps the model and the data of the run; everything else may change. Recipes are compared as plain data.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from moe_train.config.load import to_dict
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError

# A resume that changed one of these would continue with another model, on other data, or in another random order.
FIXED = (
    "seed",
    "model",
    "moe",
    "objective",
    "optim.kind",
    "data.corpus",
    "data.tokenizer",
    "data.sequence_length",
    "data.global_batch",
    "data.validation_fraction",
)
# Exceptions below FIXED: the location of the text (its fingerprint is checked before a resume), how tokens are
# dispatched, and how many an expert accepts.
FREE = (
    "data.corpus.path",
    "moe.dispatch",
    "moe.capacity_factor",
    "moe.eval_capacity_factor",
    "moe.capacity_convention",
    "moe.min_capacity",
)
PATHS = ("data.corpus.path",)
"""Keys whose values are equal if they lead to the same place."""


def comparable(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as plain data, in which two ways to place the same MoE layers are equal."""
    data = to_dict(recipe)
    layers = spec_of(recipe).moe_layers
    data["moe"] |= dict.fromkeys(("every", "first", "dense_first", "stacks")) | {"layers": layers}
    return data


def require_same(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> None:
    """Raises UsageError if two recipes differ in what a resume must keep; `where` names the source of the first."""
    if changed := [change for change in changed_keys(before, after) if _is_fixed(change[0])]:
        raise UsageError(
            "\n".join(
                f"{key}={shown(new)}: {where} has {shown(old)}, which a resume must keep; "
                "use that value, --resume never to start afresh, or another --run-dir"
                for key, old, new in changed
            )
        )


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns key, old and new value for every key that differs between two recipes as plain data.

    A key that only one of them has is ignored: it belongs to another kind, whose `kind` differs too, or to another
    version of moe-train.
    """
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        (key, old[key], new[key])
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and not (key in PATHS and _is_same_place(old[key], new[key]))
    ]


def _is_same_place(one: str | None, other: str | None) -> bool:
    return bool(one and other) and os.path.realpath(str(one)) == os.path.realpath(str(other))


def _is_fixed(key: str) -> bool:
    return _below(key, FIXED) and not _below(key, FREE)


def _below(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and the value of everything in a recipe as plain data."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """Returns a value of a recipe as its user would write it."""
    return "null" if value is None else str(value)
