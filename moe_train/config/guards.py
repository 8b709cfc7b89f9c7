"""Reads the list `guards` of a recipe, in which each entry chooses its dataclass by `kind`, and checks it.

A place of the registry holds one kind; here any number of them stand in a row, so their keys have a number:
`guards[0].kind`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moe_train.config.fields import known_fields, misshapen, read_numbers, unknown
from moe_train.config.problem import Problem
from moe_train.config.ranges import empty_text, not_finite
from moe_train.config.refusals import unknown_key, wrong_kind, wrong_value
from moe_train.config.registry import GUARDS
from moe_train.config.schema import Recipe
from moe_train.errors import RecipeError


def read_guards(entries: Sequence[Mapping[str, Any]]) -> list[DictConfig]:
    """Returns the entries, each with the fields of its kind. Raises RecipeError for one that does not fit them."""
    configs = [_config(f"guards[{place}]", entry.get("kind")) for place, entry in enumerate(entries)]
    return [
        _read(place, dict(entry), config)
        for place, (entry, config) in enumerate(zip(entries, configs, strict=True))
    ]


def guard_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yields what makes the guards of `recipe` unusable."""
    for place, config in enumerate(recipe.guards):
        prefix = f"guards[{place}]."
        problems = [*not_finite(config, prefix), *empty_text(config, prefix)]
        yield from problems
        if not problems:
            yield from (replace(each, key=f"{prefix}{each.key}") for each in config.check(recipe))


def _config(key: str, kind: Any) -> type:
    if not isinstance(kind, str) or kind not in GUARDS:
        raise RecipeError(wrong_kind(key, kind, list(GUARDS)))
    return GUARDS[kind].config


def _read(place: int, entry: dict[str, Any], config: type) -> DictConfig:
    prefix = f"guards[{place}]."
    fields, schema = known_fields(config, {}, prefix), OmegaConf.structured(config)
    defaults = OmegaConf.create({"guards": [*({},) * place, schema]})
    if problems := [
        *(unknown_key(key, value, fields, {}) for key, value in unknown(entry, fields, prefix)),
        *(wrong_value(key, value, fields, defaults) for key, value in misshapen(entry, fields, prefix)),
    ]:
        raise RecipeError("\n".join(problems))
    read_numbers(entry, fields, prefix)
    try:
        return OmegaConf.merge(schema, entry)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        name = (error.full_key or str(error.key)).partition("[")[0]
        raise RecipeError(wrong_value(f"{prefix}{name}", entry.get(name), fields, defaults)) from None
