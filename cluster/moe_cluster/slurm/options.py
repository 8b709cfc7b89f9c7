"""Defines the values of `--option KEY=VALUE` for Slurm, and checks their rules before anything is submitted."""

import re
import shlex
from collections.abc import Mapping

from moe_cluster.errors import JobError
from moe_cluster.job import Resources
from moe_cluster.slurm.step import Step

PASSED_ON = (
    *("partition", "account", "qos", "reservation", "constraint", "gres", "gpus-per-node", "mem-per-gpu"),
    *("mem-per-cpu", "exclude"),
)
"""Directives of the same name."""
EXCLUSIVE = "exclusive"
"""Whole nodes: yes, no, or Slurm's own user and mcs, which are shared with jobs of the same user or label."""
LEAD = "lead_s"
"""Seconds before the time limit at which the run is told to save. Slurm looks twice a minute, so the signal comes up to
half a minute early or late; the rest is for the step in progress and the save."""
DEFAULT_LEAD_S = 300
LAUNCHER = "launcher"
"""What runs the workers inside the allocation, slurm (default) or ray, a Ray of the job's own."""
PYTHON = "python"
"""The Python of the nodes; by default the one that submits."""
CONTAINER_TEXT = (
    "container-image",
    "container-name",
    "container-mounts",
    "container-workdir",
    "container-env",
)
"""Options of `srun` that Pyxis adds, for the workers of each node."""
CONTAINER_SWITCHES = (
    "container-mount-home",
    "container-remap-root",
    "container-entrypoint",
    "container-writable",
)
"""The same, each on or off: Pyxis has --no-NAME too, and --container-readonly."""
CONTAINER_PYTHON = "container-python"
"""The Python in a container; python3 of its PATH by default."""
PREFIX = "prefix"
"""Words before the command of each node, such as `apptainer exec --nv image.sif`."""
STAGE = "stage"
"""A folder on a disk of each node's own, to which the cache is copied before the run begins."""
KNOWN = (
    *(*PASSED_ON, EXCLUSIVE, LEAD, LAUNCHER, PYTHON, STAGE),
    *(*CONTAINER_TEXT, *CONTAINER_SWITCHES, CONTAINER_PYTHON, PREFIX),
)
MEMORY = re.compile(r"[1-9][0-9]*[KMGT]?")
GPUS = re.compile(r"(?:[A-Za-z0-9_.-]+:)?([1-9][0-9]*)")
CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")


def require_text(what: str, value: str, may_be_empty: bool = False) -> None:
    """Raise JobError for a value that must not be in a line of a script."""
    if CONTROL.search(value):
        raise JobError(
            f"{what}={value!r}: must not contain a line break or another control character; use another value"
        )
    if not value and not may_be_empty:
        raise JobError(f"{what}: must not be empty; give it a value, or leave it out")


def require_options(options: Mapping[str, str]) -> None:
    """Raise JobError for an unknown option, or an invalid value."""
    for name, value in options.items():
        if name not in KNOWN:
            raise JobError(
                f"--option {name}={value}: --cluster slurm has no such option; use one of {', '.join(KNOWN)}, "
                f"or --directive=--{name}=... for a line of Slurm's own"
            )
        require_text(f"--option {name}", value)
    _require(options, LAUNCHER, ("slurm", "ray"))
    _require(options, EXCLUSIVE, ("yes", "no", "user", "mcs"))
    for name in CONTAINER_SWITCHES:
        _require(options, name, ("yes", "no"))
    if not options.get(STAGE, "/").startswith("/"):
        raise JobError(
            f"--option {STAGE}={options[STAGE]}: must be an absolute path, the same on all nodes, e.g. /scratch/cache"
        )
    if LEAD in options and not options[LEAD].isdecimal():
        raise JobError(f"--option {LEAD}={options[LEAD]}: must be a whole number of seconds")
    for name in ("mem-per-gpu", "mem-per-cpu"):
        if name in options and not MEMORY.fullmatch(options[name]):
            raise JobError(
                f"--option {name}={options[name]}: must be a whole number, optionally with K, M, G or T, e.g. 64G"
            )
    _require_container(options)


def require_fitting(options: Mapping[str, str], needs: Resources) -> None:
    """Raise JobError for options that contradict each other or what the job needs."""
    gpus = needs.gpus_per_worker * needs.workers_per_node
    if "gpus-per-node" in options:
        _require_gpus(options["gpus-per-node"], needs)
        if "gres" in options:
            raise JobError(
                f"--option gres={options['gres']}: conflicts with gpus-per-node; leave one of the two out"
            )
    memory = [name for name in ("mem-per-gpu", "mem-per-cpu") if name in options]
    memory += [] if needs.memory_gib is None else ["--memory"]
    if len(memory) > 1:
        raise JobError(
            f"--option {memory[0]}={options[memory[0]]}: conflicts with {memory[1]}; leave one of the two out"
        )
    if "mem-per-gpu" in options and not gpus:
        raise JobError(
            f"--option mem-per-gpu={options['mem-per-gpu']}: needs GPUs; add --gpus-per-worker 1, or use --memory"
        )


def step_of(options: Mapping[str, str]) -> Step:
    """Returns how the options start the workers of each node."""
    words = [f"--{name}={options[name]}" for name in CONTAINER_TEXT if name in options]
    for name in CONTAINER_SWITCHES:
        if name in options:
            off = "container-readonly" if name == "container-writable" else f"no-{name}"
            words.append(f"--{name if options[name] == 'yes' else off}")
    prefix = tuple(shlex.split(options.get(PREFIX, "")))
    python = options.get(CONTAINER_PYTHON, "python3") if words or prefix else ""
    return Step(tuple(words), prefix, python)


def _require(options: Mapping[str, str], name: str, values: tuple[str, ...]) -> None:
    if name in options and options[name] not in values:
        *most, last = values
        raise JobError(f"--option {name}={options[name]}: must be {', '.join(most)} or {last}")


def _require_container(options: Mapping[str, str]) -> None:
    in_pyxis = [name for name in (*CONTAINER_TEXT, *CONTAINER_SWITCHES) if name in options]
    if in_pyxis and not {"container-image", "container-name"} & {*in_pyxis}:
        name = in_pyxis[0]
        raise JobError(
            f"--option {name}={options[name]}: there is no container; add --option container-image=..."
        )
    if in_pyxis and PREFIX in options:
        raise JobError(
            f"--option {PREFIX}={options[PREFIX]}: conflicts with the container of {in_pyxis[0]}; leave one of the two "
            "out"
        )
    if CONTAINER_PYTHON in options and not in_pyxis and PREFIX not in options:
        raise JobError(
            f"--option {CONTAINER_PYTHON}={options[CONTAINER_PYTHON]}: there is no container; add --option "
            f"container-image=... or {PREFIX}=..., or use --option {PYTHON}=..."
        )
    if options.get(LAUNCHER) == "ray" and (in_pyxis or PREFIX in options):
        raise JobError(
            f"--option {LAUNCHER}=ray: cannot run in a container; use {LAUNCHER}=slurm, or leave "
            f"{[*in_pyxis, PREFIX][0]} out"
        )
    _require_mounts(options.get("container-mounts", ""))
    if PREFIX in options:
        try:
            words = shlex.split(options[PREFIX])
        except ValueError:
            raise JobError(f"--option {PREFIX}={options[PREFIX]}: has an open quote; close it") from None
        if not words:
            raise JobError(
                f"--option {PREFIX}={options[PREFIX]!r}: must not be blank; name a program, or leave it out"
            )


def _require_mounts(mounts: str) -> None:
    for mount in filter(None, mounts.split(",")):
        if not mount.startswith(("/", "./")) or not 1 <= len(mount.split(":")) <= 3:
            raise JobError(
                f"--option container-mounts={mounts}: {mount} must be SOURCE[:TARGET[:FLAGS]] with an absolute source, "
                "e.g. /shared:/shared"
            )


def _require_gpus(value: str, needs: Resources) -> None:
    match, gpus = GPUS.fullmatch(value), needs.gpus_per_worker * needs.workers_per_node
    if not gpus:
        raise JobError(
            f"--option gpus-per-node={value}: needs --gpus-per-worker, which is 0; set the GPUs of each worker with it"
        )
    if match is None or int(match[1]) != gpus:
        raise JobError(
            f"--option gpus-per-node={value}: must be {gpus} or KIND:{gpus}, to match --gpus-per-worker "
            f"{needs.gpus_per_worker} and --workers-per-node {needs.workers_per_node}"
        )
