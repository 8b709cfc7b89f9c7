"""Lists every key a recipe may have, with the type of its value, and words that type for users.

OmegaConf checks values while it merges, but its errors name its own classes; the words for users are made here.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_NUMBERS = int | list[int]
NumberOrNumbers = Annotated[Any, _NUMBERS]
"""One whole number for all, or a list. OmegaConf has no such union and takes any value: `misshapen` checks it, and
`read_numbers` makes numbers of its text."""
UNSET = "???"
"""OmegaConf treats this text as a missing value, and would silently keep the default."""
IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def known_fields(section: type, kinds: Mapping[str, type], prefix: str = "") -> dict[str, Any]:
    """Returns the type of every key below the dataclass `section`; `kinds` has the chosen kind of each place."""
    fields: dict[str, Any] = {}
    types_of = get_type_hints(section, include_extras=True)  # includes constants, which are not keys
    for field in dataclasses.fields(section):
        key, declared = f"{prefix}{field.name}", types_of[field.name]
        declared = declared.__metadata__[0] if get_origin(declared) is Annotated else declared
        fields[key] = kinds.get(key, declared)
        if is_dataclass(fields[key]):
            fields |= known_fields(fields[key], kinds, f"{key}.")
    return fields


def in_words(declared: Any) -> str:
    """Words the values that a key of this type may have: "a whole number or null"."""
    if get_origin(declared) in (Union, types.UnionType):
        return " or ".join(
            "null" if option is type(None) else in_words(option) for option in get_args(declared)
        )
    if get_origin(declared) is Literal:
        return f"one of {', '.join(get_args(declared))}"
    if get_origin(declared) is list:
        (item,) = get_args(declared)
        if is_dataclass(item):
            return "a list of sections, such as [{kind: spike}]"
        is_text = item is str
        return "a list of text, such as [a, b]" if is_text else "a list of whole numbers, such as [1, 3]"
    if get_origin(declared) is dict:
        return "a mapping, such as {key: value}"
    return IN_WORDS.get(declared, "a section with keys of its own")


def choices(declared: Any) -> list[str]:
    """Returns the values to which a key of this type is limited; none if it is not limited."""
    options = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
    return [value for option in options if get_origin(option) is Literal for value in get_args(option)]


def unknown(
    data: Mapping[str, Any], fields: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) for every key that no section has."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if key not in fields:
            yield key, value
        elif is_dataclass(fields[key]) and isinstance(value, dict):
            yield from unknown(value, fields, f"{key}.")


def misshapen(
    data: Mapping[str, Any], fields: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) where a section, a list or a single value is in another's place; ignores unknown keys."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if key not in fields:
            continue
        is_section = is_dataclass(fields[key])
        if is_section and isinstance(value, dict):
            yield from misshapen(value, fields, f"{key}.")
        elif is_section or not _may_hold(fields[key], value):
            yield key, value


def _may_hold(declared: Any, value: Any) -> bool:
    """Returns whether `value` is a list of single values if the type allows a list, and not a list otherwise."""
    if value == UNSET:
        return False
    if isinstance(value, dict) or get_origin(declared) is dict:
        # A mapping with any keys; their values stay as they were written.
        return isinstance(value, dict) and get_origin(declared) is dict
    if declared == _NUMBERS:
        return all(
            type(item) is int or (isinstance(item, str) and ("${" in item or _is_whole(item)))
            for item in _listed(value)
        )
    if get_origin(declared) in (Union, types.UnionType):
        return any(_may_hold(option, value) for option in get_args(declared))
    if get_origin(declared) is not list:
        return not isinstance(value, list)
    if not isinstance(value, list):
        return False
    if is_dataclass(get_args(declared)[0]):
        return all(isinstance(item, dict) for item in value)
    return not any(isinstance(item, list | dict) for item in value)


def _is_whole(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def read_numbers(data: dict[str, Any], fields: Mapping[str, Any], prefix: str = "") -> None:
    """Converts the text of every NumberOrNumbers to numbers, in place; OmegaConf converts all other values itself."""
    for name, value in data.items():
        declared = fields[f"{prefix}{name}"]
        if is_dataclass(declared):
            read_numbers(value, fields, f"{prefix}{name}.")
        elif declared == _NUMBERS:
            items = [int(item) if _is_whole(item) else item for item in _listed(value)]
            data[name] = items if isinstance(value, list) else items[0]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def as_written(value: Any) -> str:
    """Returns a value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):  # OmegaConf's own lists too
        return "[" + ", ".join(map(as_written, value)) + "]"
    return "null" if value is None else str(value)
