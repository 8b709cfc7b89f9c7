"""Kinds that an installed package of the user's adds to moe-train's own, by entry points: docs/extending.md.

Entry points are listed without importing anything, and a package is imported only when a recipe names its kind. So
nothing here costs a command that reads no recipe, and a broken package is in nobody's way who does not use it.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from omegaconf import OmegaConf

from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem
from moe_train.errors import RecipeError


@dataclass(frozen=True)
class Kind:
    """A recipe dataclass and where its implementation is ("module:name"); the first of a place is its default."""

    config: type[KindConfig]
    implementation: str
    layer: str | None = None
    """For a router: the layer it works in, if that is not `moe_train.moe.layers.layer:MoELayer`."""
    package: str | None = None
    """The name and version of the package it comes from; None: moe-train."""


class Kinds(Mapping[str, Kind]):
    """The kinds of one place in a recipe: moe-train's own, the default first, then those of installed packages."""

    def __init__(self, place: str, group: str, base: type[KindConfig], own: Mapping[str, Kind]):
        self.place, self.group, self.base, self.own = place, group, base, own

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from sorted(set(offers(self.group)) - set(self.own))

    def __len__(self) -> int:
        return len(set(self.own) | set(offers(self.group)))

    def __contains__(self, kind: object) -> bool:
        return kind in self.own or kind in offers(self.group)

    def __getitem__(self, kind: str) -> Kind:
        """Raises KeyError for an unknown kind, and RecipeError for one that a package does not offer as it must."""
        key, offered = f"{self.place}.kind={kind}", offers(self.group).get(kind, ())
        if kind not in self.own:
            return self._checked(key, kind, single(key, self.group, offered))
        if offered:
            raise RecipeError(
                f"{key}: is moe-train's own kind, and the package {package_of(offered[0])} offers another one by this "
                f"name; rename its entry point in {self.group}, or uninstall the package"
            )
        return self.own[kind]

    def _checked(self, key: str, name: str, entry: EntryPoint) -> Kind:
        """The kind behind an entry point, if it is one that a recipe can use."""
        kind = loaded(key, entry)
        rule = None
        if not isinstance(kind, Kind):
            rule = f"must name a Kind of moe_train.config.registry, not a {type(kind).__name__}"
        elif not (isinstance(kind.config, type) and issubclass(kind.config, self.base)):
            rule = f"must have a config that derives from {self.base.__name__}"
        else:
            try:
                own_name = OmegaConf.structured(kind.config).kind
            except Exception as error:  # whatever the package's dataclass raises
                rule = f"has a config that no recipe can hold ({' '.join(str(error).split())})"
            else:
                if own_name != name:
                    rule = f"must have a config whose field kind is {name!r}, not {own_name!r}"
        if rule is None:
            for code in filter(None, (kind.implementation, kind.layer)):
                rule = rule or _missing(code)
        if rule is not None:
            raise RecipeError(f"{key}: entry point {entry.value} {rule}; correct {package_of(entry)}")
        return replace(kind, package=package_of(entry))


CALLBACKS = "moe_train.callbacks"
"""The entry points of callbacks: each names a class, or anything else that makes a callback when it is called."""
OWN_CALLBACKS = ("jsonl", "wandb", "console")


def callback_problem(name: str) -> Problem | None:
    """What keeps a recipe from having the callback `name`. Raises RecipeError for a package that cannot be used."""
    key, offered = f"monitor.callbacks={name}", offers(CALLBACKS)
    if name in OWN_CALLBACKS:
        return Problem("monitor.callbacks", name, "is moe-train's own, and every run has it", "leave it out")
    if name not in offered:
        names = ", ".join(sorted(offered)) or "none"
        rule = f"is in no installed package; those offered in {CALLBACKS} are: {names}"
        return Problem("monitor.callbacks", name, rule, "install its package, or leave it out")
    loaded(key, single(key, CALLBACKS, offered[name]))
    return None


def make_callback(name: str) -> Any:
    """The callback that a package offers by this name."""
    key = f"monitor.callbacks={name}"
    entry = single(key, CALLBACKS, offers(CALLBACKS).get(name, ()))
    make = loaded(key, entry)
    try:
        return make()
    except Exception as error:  # the package's own code
        raise RecipeError(
            f"{key}: {entry.value} of the package {package_of(entry)} cannot be made without arguments "
            f"({type(error).__name__}: {error}); correct the package, or leave the callback out"
        ) from error


def offers(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """What installed packages offer in a group of entry points, by name."""
    return _offers(group, tuple(sys.path))


@lru_cache(maxsize=64)
def _offers(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=group):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def single(key: str, group: str, offered: tuple[EntryPoint, ...]) -> EntryPoint:
    """The only entry point of a name. Raises KeyError if there is none, and RecipeError if there are several."""
    if not offered:
        raise KeyError(key)
    if len(offered) > 1:
        packages = " and ".join(package_of(entry) for entry in offered)
        raise RecipeError(
            f"{key}: is offered by {packages} in {group}; uninstall one of them, or rename its entry point"
        )
    return offered[0]


def loaded(key: str, entry: EntryPoint) -> Any:
    """What an entry point names, imported now."""
    try:
        return entry.load()
    except Exception as error:  # an import runs the package's own code
        raise RecipeError(
            f"{key}: entry point {entry.value} of the package {package_of(entry)} cannot be loaded "
            f"({type(error).__name__}: {error}); correct the package, or uninstall it"
        ) from error


def package_of(entry: EntryPoint) -> str:
    """The name and version of the package that an entry point comes from."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _missing(code: str) -> str | None:
    """The rule that "module:name" breaks if there is no such module; the module itself is not imported."""
    module, colon, attribute = code.partition(":")
    if not (module and colon and attribute):
        return f'must say where its code is as "module:name", not {code!r}'
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ImportError:
        is_there = False
    return None if is_there else f"names the module {module}, which is not there"
