"""Reads YAML as nested text: only null has a meaning of its own, for the key alone says what a value is.

YAML 1.1 takes 007 for the number 7, 12:30 for 750, and `on` for true before anyone knows that the key holds a name.
Here such a value stays as it was written, and OmegaConf turns it into the type of its field.
"""

from typing import Any, cast

import yaml

from moe_cluster.yaml_text import MERGE, TEXT_RESOLVERS

MOST_VALUES = 10_000
"""A recipe has about a hundred; aliases can stand for billions."""
DEEPEST = 50
NULLS = ("null", "Null", "NULL", "~")


class _TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loads YAML safely, reading every plain value but null as text, and refuses a key that is written twice."""

    yaml_implicit_resolvers = TEXT_RESOLVERS

    def construct_document(self, node: yaml.Node) -> Any:
        _refuse_repeated_keys(node, set())
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        return {"null" if key is None else str(key): value for key, value in mapping.items()}


_TextLoader.add_constructor(MERGE, _TextLoader.construct_yaml_str)  # << that is no key


def read_yaml(text: str | bytes) -> Any:
    """Returns the content of a YAML document: dicts, lists, text and None. Raises yaml.YAMLError."""
    try:
        return _copied(yaml.load(text, Loader=_TextLoader), [MOST_VALUES])
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None


def reason(error: yaml.YAMLError) -> str:
    """Returns what is wrong, and where, in one line; PyYAML's name for text that has no file is left out."""
    return " ".join(str(error).replace('in "<unicode string>",', "at").split())


def read_value(text: str) -> Any:
    """Returns the value in `key=value`: text as it is, unless it is null, quoted, or a list or mapping in brackets.

    Raises yaml.YAMLError if a bracket or a quote is not closed.
    """
    text = text.strip()
    if text in NULLS:
        return None
    return read_yaml(text) if text[:1] in ("[", "{", "'", '"') else text


def _copied(value: Any, room: list[int], depth: int = 0) -> Any:
    """Returns the value with a copy in place of each alias, so that no two places share one dict."""
    room[0] -= 1
    if room[0] < 0 or depth > DEEPEST:
        raise yaml.YAMLError(
            f"holds more than {MOST_VALUES:,} values, or more than {DEEPEST} inside one another"
        )
    if isinstance(value, dict):
        return {key: _copied(item, room, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item, room, depth + 1) for item in value]
    return cast(Any, value)


def _refuse_repeated_keys(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))  # an alias is the same node once more
    children = node.value
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise yaml.MarkedYAMLError(None, None, f"found duplicate key {key.value}", key.start_mark)
            keys.add(key.value)
        children = [value for _, value in node.value]
    for child in children:
        _refuse_repeated_keys(child, seen)
