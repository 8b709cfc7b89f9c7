"""The sentences for a key that does not exist and for a value that its key does not take."""

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
    """The sentence for `key`, which no section of the recipe has; `kinds` has the dataclass of each place's kind."""
    place = next((place for place in REGISTRY if key.rpartition(".")[0] == place), None)
    if place and (others := _kinds_with(place, key)):
        here = kinds[place]().kind
        return f"{key}: there is no such key in a recipe with {place}.kind={here}; it belongs to {others}"
    hint = _suggestion(key, value, fields)
    return (
        f"{key}: there is no such key in a recipe; {hint or '`moe-train show` lists every key of a recipe'}"
    )


def wrong_kind(place: str, kind: Any) -> str:
    """The sentence for a `kind` that a place does not know."""
    known = list(REGISTRY[place])
    guess = closest(kind.lower(), known) if isinstance(kind, str) else ""
    return (
        f"{place}.kind={as_written(kind)}: is not known; choose one of {', '.join(known)}"
        f"{guess or ', or install the package that it comes from'}"
    )


def wrong_value(key: str, value: Any, fields: Mapping[str, Any], schema: DictConfig) -> str:
    """The sentence for a value that is not of its key's type."""
    shown, declared = as_written(value), fields[key]
    if isinstance(value, str) and "${" in value:
        return f"{key}={shown}: cannot be resolved to {in_words(declared)}; name a key that is there, in full"
    if value == UNSET:
        return f"{key}={shown}: is OmegaConf's mark for a value that is still to come; write the value"
    if key in REGISTRY:
        kinds = ", ".join(REGISTRY[key])
        guess = closest(value.lower(), list(REGISTRY[key])) if isinstance(value, str) else ""
        return f"{key}={shown}: is a section, not a value; choose with {key}.kind, one of {kinds}{guess}"
    if is_dataclass(declared):
        inside = [name for name in fields if name.startswith(f"{key}.")]
        return f"{key}={shown}: is a section, not a value; set its keys, {', '.join(inside)}"
    default = as_written(OmegaConf.select(schema, key, default=None))
    way_out = f"its default is {default}"
    if "text" in in_words(declared) and get_origin(declared) is not list and not isinstance(value, str):
        way_out += f"; for text that reads so, quote it: {key}=\"'{shown}'\""
    guess = closest(value.lower(), choices(declared)) if isinstance(value, str) else ""
    return f"{key}={shown}: must be {in_words(declared)}; {way_out}{guess}"


def _kinds_with(place: str, key: str) -> str:
    """`PLACE.kind=a, b` for moe-train's own kinds of a place that have this key; empty if none has it."""
    leaf = key.rpartition(".")[2]
    kinds = [
        kind
        for kind, entry in OWN_KINDS[place].items()
        if leaf in (field.name for field in fields_of(entry.config))
    ]
    return f"{place}.kind={', '.join(kinds)}" if kinds else ""


def _suggestion(key: str, value: Any, fields: Mapping[str, Any]) -> str:
    """`did you mean KEY?`: one elsewhere with the same name, or one of the same section with a similar name."""
    wants_section = isinstance(value, dict)
    known = [name for name, declared in fields.items() if is_dataclass(declared) == wants_section]
    section, _, leaf = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    found = [name for name in known if name.endswith(f".{leaf}") and leaf != "kind"]
    found = found or [beside[name] for name in difflib.get_close_matches(leaf, beside, n=1)]
    found = found or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if found:
        return f"did you mean {found[0]}?"
    elsewhere = next(_of_another_kind(leaf), "")
    return f"did you mean {elsewhere}?" if elsewhere and not wants_section else ""


def _of_another_kind(leaf: str) -> Iterator[str]:
    for place in REGISTRY:
        if kinds := _kinds_with(place, leaf):
            yield f"{place}.{leaf}, a key of {kinds}"
