"""Words the errors for a key that does not exist and for a value that its key does not accept."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import Any, get_origin

from omegaconf import DictConfig, OmegaConf

from moe_train.config.fields import UNSET, as_written, choices, in_words
from moe_train.config.registry import OWN_KINDS, REGISTRY
from moe_train.errors import closest


def unknown_key(key: str, value: Any, fields: Mapping[str, Any], kinds: Mapping[str, type]) -> str:
    """Returns the error for `key`, which no section has; `kinds` has the dataclass of each place's kind."""
    place = next((place for place in REGISTRY if key.rpartition(".")[0] == place), None)
    if place and (others := _kinds_with(place, key)):
        here = kinds[place]().kind
        return f"{key}: there is no such key in a recipe with {place}.kind={here}; it belongs to {others}"
    hint = _suggestion(key, value, fields)
    return (
        f"{key}: there is no such key in a recipe; {hint or '`moe-train show` lists every key of a recipe'}"
    )


def wrong_kind(place: str, kind: Any, kinds: list[str]) -> str:
    """Returns the error for a `kind` at a place that is not among its `kinds`."""
    guess = closest(kind.lower(), kinds) if isinstance(kind, str) else ""
    return (
        f"{place}.kind={as_written(kind)}: is not a known kind; choose one of {', '.join(kinds)}"
        f"{guess or ', or install the package that it comes from'}"
    )


def wrong_value(key: str, value: Any, fields: Mapping[str, Any], schema: DictConfig) -> str:
    """Returns the error for a value that is not of its key's type."""
    text, field_type = as_written(value), fields[key]
    if "${" in text:
        return f"{key}={text}: cannot be resolved to {in_words(field_type)}; give the full name of an existing key"
    if value == UNSET:
        return f"{key}={text}: is OmegaConf's placeholder for a missing value; write the value"
    if key in REGISTRY:
        kinds = ", ".join(REGISTRY[key])
        guess = closest(value.lower(), list(REGISTRY[key])) if isinstance(value, str) else ""
        return f"{key}={text}: is a section, not a value; choose with {key}.kind, one of {kinds}{guess}"
    if is_dataclass(field_type):
        inside = [name for name in fields if name.startswith(f"{key}.")]
        return f"{key}={text}: is a section, not a value; set its keys, {', '.join(inside)}"
    default = as_written(OmegaConf.select(schema, key, default=None))
    way_out = f"its default is {default}"
    if "text" in in_words(field_type) and get_origin(field_type) is not list and not isinstance(value, str):
        way_out += f"; if it is meant as text, quote it: {key}=\"'{text}'\""
    guess = closest(value.lower(), choices(field_type)) if isinstance(value, str) else ""
    return f"{key}={text}: must be {in_words(field_type)}; {way_out}{guess}"


def _kinds_with(place: str, key: str) -> str:
    """Returns `PLACE.kind=a, b` for moe-train's own kinds of a place that have this key; empty if none has it."""
    leaf = key.rpartition(".")[2]
    kinds = [
        kind
        for kind, entry in OWN_KINDS[place].items()
        if leaf in (field.name for field in fields_of(entry.config))
    ]
    return f"{place}.kind={', '.join(kinds)}" if kinds else ""


def _suggestion(key: str, value: Any, fields: Mapping[str, Any]) -> str:
    """Suggests a key elsewhere with the same name, or one in the same section with a similar name."""
    wants_section = isinstance(value, dict)
    keys = [name for name, field_type in fields.items() if is_dataclass(field_type) == wants_section]
    section, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in keys if name.rpartition(".")[0] == section}
    similar = [name for name in keys if name.endswith(f".{leaf}") and leaf != "kind"]
    similar = similar or [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1)]
    similar = similar or difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    if similar:
        return f"did you mean {similar[0]}?"
    elsewhere = next(_of_another_kind(leaf), "")
    return f"did you mean {elsewhere}?" if elsewhere and not wants_section else ""


def _of_another_kind(leaf: str) -> Iterator[str]:
    for place in REGISTRY:
        if kinds := _kinds_with(place, leaf):
            yield f"{place}.{leaf}, a key of {kinds}"
