"""Loads a Recipe from a YAML file and a dotlist: `_base` first, then the file, then the overrides.

YAML does not say which dataclass belongs at a node, so loading takes two passes: the layers are merged as plain data,
the `kind` of each registered place picks its dataclass, and the data is merged into that. A layer that changes a kind
starts that node afresh: options of the old kind do not leak into the new one. Values are text until they are assigned
to their field (`yaml_reader.py`); `refusals.py` words the errors for wrong keys and values.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moe_train.config.fields import as_written, known_fields, misshapen, read_numbers, unknown
from moe_train.config.find import find_base, find_recipe
from moe_train.config.guards import read_guards
from moe_train.config.refusals import unknown_key, wrong_kind, wrong_value
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import Recipe
from moe_train.config.yaml_reader import read_value, read_yaml, reason
from moe_train.errors import RecipeError

IN_EVERY_SAVED_RECIPE = frozenset(
    (
        *("name", "paper", "seed", "steps", "log_every", "validate_every", "precision", "model", "moe"),
        *("objective", "data", "optim", "parallel", "engine", "checkpoint", "monitor", "job"),
    )
)
"""A run saves its recipe with every key written out: a file with all of these is a saved one."""
IMPLIED_VALUES = {"moe.router.balance_over": "group"}
"""Values of keys that older saved recipes lack, where the default differs from what those runs did."""


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), passed_over: list[str] | None = None
) -> Recipe:
    """Reads a recipe with its bases and overrides (`optim.lr=1e-3`).

    With `passed_over`, keys that this version does not have are passed over and added to it: for a saved recipe of a
    newer version, which is only looked at.
    Raises RecipeError for a missing or unreadable file, an unknown key, an unknown kind or a wrong type.
    """
    source = find_recipe(recipe)
    merged: dict[str, Any] = {}
    for layer in [*_layers(source, ()), _dotlist(overrides)]:
        _replace_placement(merged, layer)
        _overlay(merged, layer)
    merged.setdefault(
        "name", source.stem if source.parent.name in ("", ".") else f"{source.parent.name}-{source.stem}"
    )
    kinds = _chosen_kinds(merged)
    schema, fields = _schema_for(kinds), known_fields(Recipe, kinds)
    if merged.keys() >= IN_EVERY_SAVED_RECIPE:
        _fill_newer_keys(merged, fields)
    if passed_over is not None:
        passed_over += [key for key, _ in unknown(merged, fields)]
        _remove(merged, passed_over)
    if problems := [
        *(unknown_key(key, value, fields, kinds) for key, value in unknown(merged, fields)),
        *(wrong_value(key, value, fields, schema) for key, value in misshapen(merged, fields)),
    ]:
        raise RecipeError("\n".join(problems))
    read_numbers(merged, fields)
    guards = read_guards(merged.get("guards", []))
    try:
        resolved = OmegaConf.merge(schema, OmegaConf.create({**merged, "guards": guards}))
        for key, value in misshapen(
            cast(dict[str, Any], OmegaConf.to_container(resolved, resolve=True)), fields
        ):
            raise RecipeError(wrong_value(key, value, fields, schema))
        return cast(Recipe, OmegaConf.to_object(resolved))
    except OmegaConfBaseException as error:
        key = (error.full_key or str(error.key)).partition("[")[0]  # without the index into a list
        raise RecipeError(wrong_value(key, _at(merged, key), fields, schema)) from None


def to_yaml(recipe: Recipe) -> str:
    """Returns the resolved recipe with every field written out, as a run folder keeps it."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Returns the resolved recipe as plain data."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(recipe)))


def _layers(path: Path, above: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    """Yields the bases of `path`, furthest first, then `path` itself, as plain data."""
    if path.resolve() in above:
        raise RecipeError(f"_base={path}: a recipe cannot be its own base; remove one of the `_base` lines")
    data = _read(path)
    bases = data.pop("_base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise RecipeError(
            f"_base={as_written(bases)}: must be a file or a list of files; correct it in {path}"
        )
    for base in bases:
        yield from _layers(find_base(base, path), (*above, path.resolve()))
    yield data


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"recipe={path}: cannot be read ({error.strerror}); check the file's permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe={path}: is not valid YAML (not UTF-8 text from byte {error.start:,} on); save it as "
            "UTF-8, or name another file"
        ) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe={path}: is not valid YAML ({reason(error)}); correct that line") from None
    if data in (None, {}):
        raise RecipeError(
            f"recipe={path}: is empty; write at least one key, such as `name: my-run`, or name another file"
        )
    if not isinstance(data, dict):
        raise RecipeError(f"recipe={path}: must be a mapping of keys to values, not a {type(data).__name__}")
    _require_nested(data, f"recipe={path}")
    return data


def _require_nested(data: Mapping[str, Any], where: str, above: tuple[str, ...] = ()) -> None:
    """Refuses `optim.lr: 1e-3` as one key of a mapping: dotted keys are only for key=value."""
    for key, value in data.items():
        if "." in key:
            parts = [*above, *key.split(".")]
            nested = f"{': {'.join(parts)}: {as_written(value)}{'}' * (len(parts) - 1)}"
            raise RecipeError(
                f"{'.'.join(parts)}: {where} has it as one key, but YAML keys are nested; write {nested}"
            )
        if isinstance(value, dict):
            _require_nested(value, where, (*above, key))


def _dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns all overrides as one layer; of two values for a key the last wins."""
    layer: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not key or not equals:
            raise RecipeError(f"override={override}: must have the form key=value, for example optim.lr=1e-3")
        try:
            value = read_value(text)
        except yaml.YAMLError as error:
            raise RecipeError(
                f"override={override}: is not valid YAML ({reason(error)}); quote the value"
            ) from None
        if isinstance(value, dict):
            _require_nested(value, f"override={override}", tuple(key.split(".")))
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(layer, value)
    return layer


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Merges `above` into `below` in place."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key, {}), dict):
            _merge(below.setdefault(key, {}), value)
        else:
            below[key] = value


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Merges `above` into `below` in place; a changed `kind` empties its node first."""
    for place, kinds in REGISTRY.items():
        old, new = _at(below, place), _at(above, place)
        default = next(iter(kinds))
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        if new.get("kind", old.get("kind", default)) != old.get("kind", default):
            old.clear()
    _merge(below, above)


def _replace_placement(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Lets a layer that lists the MoE layers replace an every-n-th rule of the layers below it, and vice versa."""
    placed, listed = _at(above, "moe.every") is not None, _at(above, "moe.layers") is not None
    moe = below.setdefault("moe", {}) if placed != listed else None
    if isinstance(moe, dict):
        for key in ("first", "dense_first", "stacks") if listed else ():
            moe.pop(key, None)
        moe["every" if listed else "layers"] = None


def _chosen_kinds(merged: dict[str, Any]) -> dict[str, type]:
    """Returns the dataclass of the chosen kind at every registered place."""
    configs: dict[str, type] = {}
    for place, kinds in REGISTRY.items():
        node = _at(merged, place)
        kind = node.get("kind", next(iter(kinds))) if isinstance(node, dict) else next(iter(kinds))
        if not isinstance(kind, str) or kind not in kinds:
            raise RecipeError(wrong_kind(place, kind, list(kinds)))
        configs[place] = kinds[kind].config
    return configs


def _fill_newer_keys(saved: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Adds the keys that a saved recipe lacks because they are newer, with the values it implied."""
    for key, value in IMPLIED_VALUES.items():
        place, _, name = key.rpartition(".")
        node = _at(saved, place)
        if key in fields and isinstance(node, dict):
            node.setdefault(name, value)


def _remove(data: dict[str, Any], keys: Iterable[str]) -> None:
    """Removes dotted keys."""
    for key in keys:
        place, _, name = key.rpartition(".")
        del (_at(data, place) if place else data)[name]


def _schema_for(kinds: Mapping[str, type]) -> DictConfig:
    """Returns the structured Recipe with the dataclass of every chosen kind in its place."""
    schema = cast(DictConfig, OmegaConf.structured(Recipe))
    for place, config in kinds.items():
        OmegaConf.update(schema, place, OmegaConf.structured(config), merge=False)
    return schema


def _at(data: Any, key: str) -> Any:
    """Returns the value at a dotted key of plain data; None if there is none."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data
