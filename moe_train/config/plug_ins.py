"""Adds the kinds of installed packages to moe-train's own, by entry points: docs/extending.md.

Entry points are listed without importing anything, and a package is imported only when a recipe names its kind. So
commands that read no recipe pay nothing, and a broken package affects only those who use it.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
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
    """Names a recipe dataclass and its implementation ("module:name"); the first kind of a place is its default."""

    config: type[KindConfig]
    implementation: str
    layer: str | None = None
    """For a router: the layer it needs, if that is not ROUTED_LAYER of registry.py."""
    package: str | None = None
    """Name and version of the package it comes from; None: moe-train."""


class OnDemand(Mapping[str, Kind]):
    """Maps names to kinds that are made when they are looked up, so that a run imports the options of its own only."""

    def __init__(self, makers: Mapping[str, Callable[[], Kind]]):
        self.makers = makers

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)

    def __contains__(self, kind: object) -> bool:
        return kind in self.makers

    def __getitem__(self, kind: str) -> Kind:
        return self.makers[kind]()


class Kinds(Mapping[str, Kind]):
    """Maps the kinds of one place in a recipe: moe-train's own, the default first, then those of installed packages."""

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
        """Raises KeyError for an unknown kind, and RecipeError for one whose package offers it wrongly."""
        key, entries = f"{self.place}.kind={kind}", offers(self.group).get(kind, ())
        if kind not in self.own:
            return self._checked(key, kind, single(key, self.group, entries))
        if entries:
            raise RecipeError(
                f"{key}: is moe-train's own kind, but the package {package_of(entries[0])} offers another one under "
                f"this name; rename its entry point in {self.group}, or uninstall the package"
            )
        return self.own[kind]

    def _checked(self, key: str, name: str, entry: EntryPoint) -> Kind:
        """Returns the kind of an entry point. Raises RecipeError if a recipe cannot use it."""
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
                rule = f"has a config that cannot be part of a recipe ({' '.join(str(error).split())})"
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
"""The entry points of callbacks: each names a class, or anything else that returns a callback when called."""
OWN_CALLBACKS = ("jsonl", "wandb", "console")


def callback_problem(name: str) -> Problem | None:
    """Returns the problem with the callback `name`, if any. Raises RecipeError for an unusable package."""
    key, entries = f"monitor.callbacks={name}", offers(CALLBACKS)
    if name in OWN_CALLBACKS:
        return Problem("monitor.callbacks", name, "is moe-train's own, which every run has", "leave it out")
    if name not in entries:
        names = ", ".join(sorted(entries)) or "none"
        rule = f"is in no installed package; installed packages offer in {CALLBACKS}: {names}"
        return Problem("monitor.callbacks", name, rule, "install its package, or leave it out")
    loaded(key, single(key, CALLBACKS, entries[name]))
    return None


def make_callback(name: str) -> Any:
    """Makes the callback that a package offers under this name."""
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
    """Returns the entry points of installed packages in a group, by name."""
    return _offers(group, tuple(sys.path))


@lru_cache(maxsize=64)
def _offers(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    by_name: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in _installed(path).select(group=group):
        by_name[entry.name] = (*by_name.get(entry.name, ()), entry)
    return by_name


@lru_cache(maxsize=4)
def _installed(path: tuple[str, ...]) -> Any:
    """Returns the entry points of all groups, to `select` from. Finding them reads a file of every package."""
    return entry_points()  # EntryPoints, or what stands for them until Python 3.12


def single(key: str, group: str, entries: tuple[EntryPoint, ...]) -> EntryPoint:
    """Returns the only entry point of a name.

    Raises KeyError if there is none, and RecipeError if there are several.
    """
    if not entries:
        raise KeyError(key)
    if len(entries) > 1:
        packages = " and ".join(package_of(entry) for entry in entries)
        raise RecipeError(
            f"{key}: is offered by {packages} in {group}; uninstall one of them, or rename its entry point"
        )
    return entries[0]


def loaded(key: str, entry: EntryPoint) -> Any:
    """Imports and returns the object that an entry point names."""
    try:
        return entry.load()
    except Exception as error:  # an import runs the package's own code
        raise RecipeError(
            f"{key}: entry point {entry.value} of the package {package_of(entry)} cannot be loaded "
            f"({type(error).__name__}: {error}); correct the package, or uninstall it"
        ) from error


def package_of(entry: EntryPoint) -> str:
    """Returns the name and version of the package that an entry point comes from."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _missing(code: str) -> str | None:
    """Returns the rule that "module:name" breaks, if any; the module itself is not imported."""
    module, colon, attribute = code.partition(":")
    if not (module and colon and attribute):
        return f'must name its code as "module:name", not {code!r}'
    try:
        exists = importlib.util.find_spec(module) is not None
    except ImportError:
        exists = False
    return None if exists else f"names the module {module}, which does not exist"
