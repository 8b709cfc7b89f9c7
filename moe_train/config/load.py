"""From a YAML file and a dotlist to a Recipe: `_base` first, then the file, then the overrides.

YAML cannot say which dataclass stands at a node, so loading makes two passes: the layers are merged as plain
data, the `kind` of each registered place picks its dataclass, and the data is merged into that. A layer that
changes a kind starts that node afresh: options of the old kind do not leak into the new one.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from moe_train.config.fields import as_written, in_words, known_fields, misshapen
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import Recipe
from moe_train.errors import RecipeError

IN_EVERY_SAVED_RECIPE = frozenset(
    (
        *("name", "paper", "seed", "steps", "log_every", "validate_every", "precision", "model", "moe"),
        *("objective", "data", "optim", "parallel", "engine", "checkpoint", "monitor", "job"),
    )
)
"""A run saves its recipe with every key written out: a file with all of these is such a one."""
MEANT_BEFORE = {"moe.router.balance_over": "group"}
"""What runs did that were saved before a key existed, where its default is another now: a resume goes on with it."""

SOURCE_TREE = Path(__file__).resolve().parents[2] / "recipes"
INSTALLED = Path(__file__).resolve().parents[1] / "_recipes"


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with its bases and overrides (`optim.lr=1e-3`).

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
    if merged.keys() >= IN_EVERY_SAVED_RECIPE:
        _fill_younger_keys(merged, known_fields(Recipe, kinds))
    schema, fields = _schema_for(kinds), known_fields(Recipe, kinds)
    for key, value in misshapen(merged, fields):
        raise RecipeError(_wrong_value(key, value, fields, schema))
    try:
        resolved = OmegaConf.merge(schema, OmegaConf.create(merged))
        for key, value in misshapen(
            cast(dict[str, Any], OmegaConf.to_container(resolved, resolve=True)), fields
        ):
            raise RecipeError(_wrong_value(key, value, fields, schema))
        return cast(Recipe, OmegaConf.to_object(resolved))
    except ConfigKeyError as error:
        raise RecipeError(_unknown_key(error, fields)) from None
    except OmegaConfBaseException as error:
        key = (error.full_key or str(error.key)).partition("[")[0]  # of a list, without the place in it
        raise RecipeError(_wrong_value(key, _at(merged, key), fields, schema)) from None


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every field written out: what a run folder keeps."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(recipe)))


def find_recipe(recipe: str | Path) -> Path:
    """The file a recipe argument means: a path, or a name below the recipes that come with moe-train."""
    given = Path(recipe)
    relative = Path(*given.parts[1:]) if given.parts[:1] == ("recipes",) else given
    shipped = SOURCE_TREE if os.path.isdir(SOURCE_TREE) else INSTALLED
    for name in (given, Path(f"{given}.yaml"), shipped / relative, shipped / f"{relative}.yaml"):
        # os.path instead of Path: it answers "no" where a name is too long for the file system.
        if os.path.isfile(name):
            return name
    if os.path.isdir(given):
        raise RecipeError(f"recipe={recipe}: is a folder; name one YAML file in it")
    known = sorted(str(path.relative_to(shipped)) for path in shipped.glob("[!_]*/*.yaml"))
    close = difflib.get_close_matches(str(relative), known, n=1, cutoff=0.7)
    folders = ", ".join(sorted({Path(name).parent.name for name in known})) or "none"
    hint = f"did you mean recipes/{close[0]}?" if close else f"recipes/ has one folder a system: {folders}"
    raise RecipeError(f"recipe={recipe}: there is no such file; {hint}")


def _layers(path: Path, above: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    """The bases of `path`, furthest first, then `path` itself, as plain data."""
    if path.resolve() in above:
        raise RecipeError(f"_base={path}: a recipe cannot be its own base; remove one of the `_base` lines")
    data = _read(path)
    bases = data.pop("_base", [])
    for base in [bases] if isinstance(bases, str) else bases:
        base_path = path.parent / base
        if not base_path.is_file():
            raise RecipeError(
                f"_base={base}: {path} names a base that is not there; correct the relative path"
            )
        yield from _layers(base_path, (*above, path.resolve()))
    yield data


def _read(path: Path) -> dict[str, Any]:
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise RecipeError(
            f"recipe={path}: cannot be read ({error.strerror}); check the file's permissions"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        first = " ".join(str(error).split())
        raise RecipeError(f"recipe={path}: is not valid YAML ({first}); correct that line") from None
    if data in (None, {}):
        raise RecipeError(
            f"recipe={path}: is empty; write at least one key, such as `name: my-run`, or name another file"
        )
    if not isinstance(data, dict):
        raise RecipeError(f"recipe={path}: must be a mapping of keys to values, not a {type(data).__name__}")
    return cast(dict[str, Any], data)


def _dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise RecipeError(f"override={override}: must have the form key=value, for example optim.lr=1e-3")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides))))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"override={' '.join(overrides)}: is not valid YAML ({reason}); quote the value"
        ) from None


def _overlay(below: dict[str, Any], above: dict[str, Any], path: str = "") -> None:
    """Merge `above` into `below` in place; a changed `kind` empties its node first."""
    if path in REGISTRY and "kind" in above:
        default = next(iter(REGISTRY[path]))
        if above["kind"] != below.get("kind", default):
            below.clear()
    for key, value in above.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and isinstance(below.get(key, {}), dict):
            _overlay(below.setdefault(key, {}), value, here)
        else:
            below[key] = value


def _replace_placement(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Let a layer that lists the MoE layers replace what those below it say of every n-th, and the other way round."""
    placed, listed = _at(above, "moe.every") is not None, _at(above, "moe.layers") is not None
    moe = below.setdefault("moe", {}) if placed != listed else None
    if isinstance(moe, dict):
        for key in ("first", "dense_first", "stacks") if listed else ():
            moe.pop(key, None)
        moe["every" if listed else "layers"] = None


def _chosen_kinds(merged: dict[str, Any]) -> dict[str, type]:
    """The dataclass of the chosen kind at every registered place."""
    chosen: dict[str, type] = {}
    for place, known in REGISTRY.items():
        node = _at(merged, place)
        kind = node.get("kind", next(iter(known))) if isinstance(node, dict) else next(iter(known))
        if not isinstance(kind, str) or kind not in known:
            raise RecipeError(
                f"{place}.kind={as_written(kind)}: is not known; choose one of {', '.join(known)}"
            )
        chosen[place] = known[kind].config
    return chosen


def _fill_younger_keys(saved: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Write out what a saved recipe meant by not having a key that is younger."""
    for key, value in MEANT_BEFORE.items():
        place, _, name = key.rpartition(".")
        node = _at(saved, place)
        if key in fields and isinstance(node, dict):
            node.setdefault(name, value)


def _schema_for(kinds: Mapping[str, type]) -> DictConfig:
    """The structured Recipe with the dataclass of every chosen kind in its place."""
    schema = cast(DictConfig, OmegaConf.structured(Recipe))
    for place, config in kinds.items():
        OmegaConf.update(schema, place, OmegaConf.structured(config), merge=False)
    return schema


def _unknown_key(error: ConfigKeyError, fields: Mapping[str, Any]) -> str:
    key = error.full_key or str(error.key)
    leaf = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(key, fields, n=1) or [
        name for name in fields if name.endswith(f".{leaf}")
    ]
    hint = f"did you mean {close[0]}?" if close else "`moe-train show` lists every key of a recipe"
    return f"{key}: there is no such key in a recipe; {hint}"


def _wrong_value(key: str, value: Any, fields: Mapping[str, Any], schema: DictConfig) -> str:
    shown = as_written(value)
    if isinstance(value, str) and "${" in value:
        return (
            f"{key}={shown}: cannot be resolved to {in_words(fields[key])}; name a key that is there, in full"
        )
    if key in REGISTRY:
        kinds = ", ".join(REGISTRY[key])
        return f"{key}={shown}: is a section, not a value; choose with {key}.kind, one of {kinds}"
    if is_dataclass(fields[key]):
        inside = [name for name in fields if name.startswith(f"{key}.")]
        return f"{key}={shown}: is a section, not a value; set its keys, {', '.join(inside)}"
    default = as_written(OmegaConf.select(schema, key, default=None))
    return f"{key}={shown}: must be {in_words(fields[key])}; its default is {default}"


def _at(data: Any, key: str) -> Any:
    """The value at a dotted key of plain data; None where there is none."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data
