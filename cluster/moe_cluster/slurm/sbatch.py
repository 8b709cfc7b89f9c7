"""Renders the script of a Slurm job as pure text, which administrators can read in the job's record.

A script has three parts: directives, the run's environment and command, and a fixed end that forwards signals and exit
codes. Values from a recipe or a command line are quoted, for Slurm's own parser in a directive and for the shell below;
what cannot be quoted, such as a line break, is refused. Secrets are never written into a script.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from moe_cluster.contract import JOB_VARIABLE, PREEMPTED
from moe_cluster.errors import JobError
from moe_cluster.job import JobSpec, Resources
from moe_cluster.own_code import module_command
from moe_cluster.records import JOBS_DIR
from moe_cluster.setup_lines import require_shell
from moe_cluster.share import SHARE_VARIABLE, Share
from moe_cluster.slurm.options import (
    DEFAULT_LEAD_S,
    EXCLUSIVE,
    LAUNCHER,
    LEAD,
    PASSED_ON,
    STAGE,
    require_fitting,
    require_options,
    require_text,
    step_of,
)
from moe_cluster.slurm.step import STEP_VARIABLE

OURS = (
    "array",
    "clusters",
    "error",
    "no-requeue",
    "ntasks",
    "ntasks-per-node",
    "parsable",
    "test-only",
    "wait",
    "wrap",
)
"""Options of sbatch that would take a job's output, requeue or id from us, beside those that we write."""
WORKERS_VARIABLE = "MOE_TRAIN_WORKERS_PER_NODE"
JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")
DIRECTIVE = re.compile(r"--([a-z][a-z0-9-]*)([ =].*)?")

SETUP_BEGINS = (
    "# Setup. The job ends at the first command that fails.",
    """trap 'code=$?; echo "moe-train: setup: exit code $code of: $BASH_COMMAND" >&2; exit "$code"' ERR""",
    "set -eE",
)
SETUP_ENDS = ("set +eE", "trap - ERR")

END = f"""\
# Slurm sends USR1 to this script alone when the time limit is near, and TERM when the job is preempted or cancelled.
# Either way the run saves, and ends with exit code {PREEMPTED}: it can go on. While it starts it ignores signals, so it
# is told again and again.
told=
told_to_end=
trap 'told=${{told:-USR1}}' USR1
trap 'told=${{told:-TERM}}; told_to_end=yes' TERM INT
(trap '' USR1 TERM INT; exec "${{command[@]}}") &
run=$!
while kill -0 "$run" 2>/dev/null; do
  if [ -z "$told" ]; then wait "$run"; else kill -s "$told" "$run"; sleep 1; fi
done
wait "$run"
code=$?

# Nobody told it to end: it goes on where there is time. Where somebody did, Slurm decides what becomes of the job.
if [ "$code" = {PREEMPTED} ] && [ -z "$told_to_end" ]; then
  echo "job $SLURM_JOB_ID: queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(job: JobSpec, python: str) -> str:
    """Returns the script of one job. Raises JobError for values that must not be in a script."""
    output = _pattern(job.run_dir / JOBS_DIR) + "/%j.log"
    lines = _head(job, job.name, output, array="")
    lines += ["", *_exports(job), *_setup(job), _command(job, python), ""]
    return "\n".join(lines) + "\n" + END


def array_script(jobs: Sequence[JobSpec], at_once: int | None, python: str) -> str:
    """Returns one script for jobs that differ only in name, run folder and command: task K is the K-th job, from 0."""
    _require_alike(jobs)
    output = _pattern(common_folder(jobs) / JOBS_DIR) + "/%A_%a.log"
    name = jobs[0].name
    limit = "" if at_once is None else f"%{at_once}"
    lines = _head(jobs[0], name, output, array=f"0-{len(jobs) - 1}{limit}")
    lines += ["", *_exports(jobs[0]), *_setup(jobs[0]), 'case "$SLURM_ARRAY_TASK_ID" in']
    for number, job in enumerate(jobs):
        lines += [f"{number})", f"  {_command(job, python)}", "  ;;"]
    return "\n".join([*lines, "esac", ""]) + "\n" + END


def common_folder(jobs: Sequence[JobSpec]) -> Path:
    """Returns the folder above the run folders of a sweep, where an array's output goes."""
    return Path(os.path.commonpath([job.run_dir for job in jobs]))


def _head(job: JobSpec, name: str, output: str, array: str) -> list[str]:
    own = dict(_directives(job, name, output, array))
    lines = [
        f"#SBATCH --{key}={_for_slurm(value)}" if value else f"#SBATCH --{key}" for key, value in own.items()
    ]
    lines += [f"#SBATCH {_passed_directive(line, own)}" for line in job.directives]
    about = f"# Trains {name!r}; written by moe-train, whose docs/slurm.md explains it line by line."
    return ["#!/bin/bash", about, *lines]


def _directives(job: JobSpec, name: str, output: str, array: str) -> Iterator[tuple[str, str]]:
    """Yields name and value of our directives, in order."""
    require_options(job.options)
    require_fitting(job.options, job.resources)
    require_text("name", name)
    yield "job-name", name
    yield "output", output
    yield "open-mode", "append"
    yield "export", "ALL"
    if array:
        yield "array", array
    yield from _of_resources(job.resources, job.options)
    for option in PASSED_ON:
        if option in job.options:
            yield option, job.options[option]
    if job.after:
        yield "dependency", f"afterok:{':'.join(map(_job_id, job.after))}"
        yield "kill-on-invalid-dep", "yes"
    yield "requeue", ""
    yield "signal", f"B:USR1@{_lead_s(job)}"


def _of_resources(needs: Resources, options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if needs.min_nodes in (None, needs.nodes):
        yield "nodes", str(needs.nodes)
        yield "ntasks-per-node", "1"
    else:  # with a number of tasks, Slurm would allocate only the smaller number of nodes
        yield "nodes", f"{needs.min_nodes}-{needs.nodes}"
    is_exclusive = options.get(EXCLUSIVE, "no") != "no"
    # The launcher has its steps use all cores of nodes that are its own; a Ray is told a number.
    if not is_exclusive or needs.cpus_per_worker or options.get(LAUNCHER) == "ray":
        yield "cpus-per-task", str(needs.workers_per_node * needs.cpus)
    if is_exclusive:
        yield EXCLUSIVE, "" if options[EXCLUSIVE] == "yes" else options[EXCLUSIVE]
    if needs.gpus_per_worker and not {"gres", "gpus-per-node"} & {*options}:
        yield "gres", f"gpu:{needs.gpus_per_worker * needs.workers_per_node}"
    if needs.memory_gib is not None:
        yield "mem", f"{math.ceil(needs.memory_gib * 1024)}M"
    elif is_exclusive and not {"mem-per-gpu", "mem-per-cpu"} & {*options}:
        yield "mem", "0"  # all that the nodes have
    if needs.time_limit_min is not None:
        yield "time", str(needs.time_limit_min)


def _lead_s(job: JobSpec) -> int:
    lead_s, limit_min = int(job.options.get(LEAD, DEFAULT_LEAD_S)), job.resources.time_limit_min
    if limit_min is not None and lead_s >= 60 * limit_min:
        raise JobError(
            f"--time-limit {limit_min}: must be more than the {lead_s} s before the end at which the run saves; give "
            f"it more minutes, or set --option {LEAD}=SECONDS"
        )
    return lead_s


def _passed_directive(line: str, own: Mapping[str, str]) -> str:
    """Returns a user's directive unchanged. Raises JobError if it is invalid or conflicts with one of ours."""
    require_text("--directive", line)
    match = DIRECTIVE.fullmatch(line)
    if match is None:
        raise JobError(f"--directive {line}: is not an option of sbatch; write it as --name=value")
    # sbatch accepts abbreviated options.
    undone = next((name for name in (*own, *OURS) if name.startswith(match[1])), None)
    if undone:
        raise JobError(
            f"--directive {line}: conflicts with --{undone}, which moe-train sets or must not have; leave the line "
            "out, or use moe-train's own option for it"
        )
    return line


def _exports(job: JobSpec) -> Iterator[str]:
    for name, value in job.environment.items():
        require_text(f"environment {name}", value)
        yield f"export {name}={shlex.quote(value)}"
    yield f"export {WORKERS_VARIABLE}={job.resources.workers_per_node}"
    if job.options.get(LAUNCHER) == "ray":
        yield f"export {SHARE_VARIABLE}={shlex.quote(_ray_share(job.resources))}"
    if step := step_of(job.options).text():
        yield f"export {STEP_VARIABLE}={shlex.quote(step)}"
    yield f'export {JOB_VARIABLE}="slurm:$SLURM_JOB_ID"'


def _setup(job: JobSpec) -> list[str]:
    """Returns the setup commands of site and user; the job ends at the first that fails."""
    staging = _staging(job.options[STAGE]) if STAGE in job.options else []
    if not job.setup and not staging:
        return []
    require_shell(job.setup)
    return ["", *SETUP_BEGINS, *job.setup, *staging, *SETUP_ENDS, ""]


def _staging(folder: str) -> list[str]:
    """Returns commands that copy newer files of the cache to the folder on every node, which builds missing ones."""
    copy = """'[ ! -d "$1" ] || { mkdir -p "$2" && cp -Rup "$1/." "$2"; }'"""
    cache = '"${MOE_TRAIN_CACHE:-$HOME/.cache/moe-train}"'
    one_a_node = '--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1'
    return [
        f"srun {one_a_node} sh -c {copy} sh {cache} {shlex.quote(folder)}",
        f"export MOE_TRAIN_CACHE={shlex.quote(folder)}",
    ]


def _command(job: JobSpec, python: str) -> str:
    launcher = job.options.get(LAUNCHER, "slurm")
    words = module_command("moe_train.cli", *job.command, "--launcher", launcher, python=python)
    if launcher == "ray":
        words = module_command("moe_cluster.ray.in_slurm", str(job.run_dir / JOBS_DIR), *words, python=python)
    for word in words:
        require_text("command", word, may_be_empty=True)
    return f"command=({shlex.join(words)})"


def _ray_share(needs: Resources) -> str:
    resources = {"CPU": float(needs.cpus), "GPU": float(needs.gpus_per_worker)}
    share = Share({name: number for name, number in resources.items() if number}, needs.workers_per_node)
    return json.dumps(asdict(share))


def _require_alike(jobs: Sequence[JobSpec]) -> None:
    first = jobs[0]
    for job in jobs:
        if replace(job, name=first.name, run_dir=first.run_dir, command=first.command) != first:
            raise JobError(
                f"{job.name}: must have the same resources and options as {first.name}, because the jobs of an array "
                "share them; submit it separately"
            )


def _job_id(text: str) -> str:
    if not JOB_ID.fullmatch(text):
        raise JobError(f"--after {text}: is not a valid Slurm job id; use a number such as 123 or 123_4")
    return text


def _pattern(folder: Path) -> str:
    """Returns a folder's name for a place where Slurm expands patterns such as %j."""
    require_text("run_dir", str(folder))
    if "\\" in str(folder):
        raise JobError(
            f"run_dir={folder}: must not contain a backslash, which Slurm interprets; use another --run-dir"
        )
    return str(folder).replace("%", "%%")


def _for_slurm(value: str) -> str:
    """Quotes a value of a directive for sbatch's parser, unless it is plain."""
    if re.fullmatch(r"[A-Za-z0-9_./:,@%+=-]+", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
