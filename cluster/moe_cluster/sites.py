"""Reads the defaults for all jobs of a user or site, ~/.config/moe-train/cluster.yaml, which keep recipes portable.

default: slurm                       # backend of `submit` without --cluster
slurm:
  options: {partition: gpu, account: physics}
  directives: ["--mail-type=END"]
  environment: {NCCL_SOCKET_IFNAME: ib0}
  setup: ["module load cuda/13"]     # shell commands to run before the job's command
ray:
  options: {address: "http://head:8265"}
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from moe_cluster.errors import JobError
from moe_cluster.executor import EXECUTORS
from moe_cluster.yaml_text import TEXT_RESOLVERS

FILE_NAME = "moe-train/cluster.yaml"


class _TextLoader(yaml.SafeLoader):
    """Keeps every plain value but null as text: an account 007 is not a number, and `on` is not True."""

    yaml_implicit_resolvers = TEXT_RESOLVERS


@dataclass(frozen=True)
class Site:
    """Holds the defaults for the jobs of one backend."""

    options: Mapping[str, str] = field(default_factory=dict)
    directives: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sites:
    """Holds the content of the file."""

    default: str = "local"
    by_cluster: Mapping[str, Site] = field(default_factory=dict)

    def of(self, cluster: str) -> Site:
        """Returns the defaults for a backend; empty if the file does not name it."""
        return self.by_cluster.get(cluster, Site())


def sites_file(environment: Mapping[str, str]) -> Path:
    """Returns the path of the file: below XDG_CONFIG_HOME, or ~/.config."""
    home = environment.get("HOME") or os.path.expanduser("~")  # stays `~` for a user without a home
    return Path(environment.get("XDG_CONFIG_HOME") or f"{home}/.config") / FILE_NAME


def read_sites(path: Path) -> Sites:
    """Read the file at `path`; empty if it is missing. Raises JobError that names the invalid key."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader) or {}
    except FileNotFoundError:
        return Sites()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise JobError(
            f"{path}: cannot be read as YAML ({str(error).splitlines()[0]}); correct or remove it"
        ) from None
    if not isinstance(content, dict):
        raise JobError(f"{path}: must be a mapping from backends to the defaults for their jobs")
    keys = ("default", *EXECUTORS)
    for key in content:
        if key not in keys:
            raise JobError(f"{path}: {key}: there is no such key; use {', '.join(keys)}")
    default = content.pop("default", "local")
    if not isinstance(default, str) or default not in EXECUTORS:
        raise JobError(f"{path}: default={default}: must be one of {', '.join(EXECUTORS)}")
    return Sites(default, {cluster: _site(path, cluster, entry) for cluster, entry in content.items()})


def _site(path: Path, cluster: str, entry: Any) -> Site:
    names = [each.name for each in fields(Site)]
    if not isinstance(entry, dict) or any(key not in names for key in entry):
        raise JobError(f"{path}: {cluster}: must be a mapping with keys among {', '.join(names)}")
    defaults: dict[str, Any] = {}
    for key, value in entry.items():
        is_mapping = key in ("options", "environment")
        if not isinstance(value, dict if is_mapping else list):
            shape = "a mapping" if is_mapping else "a list of lines"
            raise JobError(f"{path}: {cluster}.{key}={value!r}: must be {shape}")
        pairs = value.items() if isinstance(value, dict) else [(None, line) for line in value]
        for name, item in pairs:
            if not isinstance(item, str):
                raise JobError(
                    f"{path}: {cluster}.{key}: {'' if name is None else f'{name}='}{item!r}: must be text or a number"
                )
        defaults[key] = (
            {str(name): str(item) for name, item in pairs} if is_mapping else tuple(map(str, value))
        )
    return Site(**defaults)
