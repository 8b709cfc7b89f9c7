"""The script that Slurm is given, as pure text: what a cluster's administrator reads in a job's record.

A script has three parts: directives, the run's environment and command, and a fixed end that passes signals and
exit codes on. Whatever comes from a recipe or a command line is quoted, for Slurm's own parser in a directive and
for the shell below; what cannot be quoted, such as a line break, is refused. No secret is ever written into a
script.
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
from moe_cluster.ray_share import SHARE_VARIABLE, Share
from moe_cluster.records import JOBS_DIR

PASSED_ON = ("partition", "account", "qos", "reservation", "constraint", "gres", "exclude")
"""Options that are directives of the same name."""
LEAD = "lead_s"
"""Option: seconds before the time limit at which the run is told to save. Slurm looks twice a minute, so the signal
comes up to half a minute early or late; the rest is for the step in progress and the save."""
DEFAULT_LEAD_S = 300
LAUNCHER = "launcher"
"""Option: what runs the workers inside the allocation, slurm (default) or ray, a Ray of the job's own."""
PYTHON = "python"
"""Option: the Python of the nodes; by default the one that submits."""
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
CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")
DIRECTIVE = re.compile(r"--([a-z][a-z0-9-]*)([ =].*)?")

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
    """The script of one job. Raises JobError, with the rule, for what no script may hold."""
    output = _pattern(job.run_dir / JOBS_DIR) + "/%j.log"
    lines = _head(job, job.name, output, array="")
    lines += ["", *_exports(job), *job.setup, _command(job, python), ""]
    return "\n".join(lines) + "\n" + END


def array_script(jobs: Sequence[JobSpec], at_once: int | None, python: str) -> str:
    """One script for jobs that differ in name, run folder and command only: task K is the K-th of them, from 0."""
    _require_alike(jobs)
    output = _pattern(common_folder(jobs) / JOBS_DIR) + "/%A_%a.log"
    name = jobs[0].name
    limit = "" if at_once is None else f"%{at_once}"
    lines = _head(jobs[0], name, output, array=f"0-{len(jobs) - 1}{limit}")
    lines += ["", *_exports(jobs[0]), *jobs[0].setup, 'case "$SLURM_ARRAY_TASK_ID" in']
    for number, job in enumerate(jobs):
        lines += [f"{number})", f"  {_command(job, python)}", "  ;;"]
    return "\n".join([*lines, "esac", ""]) + "\n" + END


def common_folder(jobs: Sequence[JobSpec]) -> Path:
    """The folder above the run folders of a sweep: an array's output has one place."""
    return Path(os.path.commonpath([job.run_dir for job in jobs]))


def require_options(options: Mapping[str, str]) -> None:
    """Raise JobError for an option that there is not, or a value that none of them can have."""
    known = (*PASSED_ON, LEAD, LAUNCHER, PYTHON)
    for name, value in options.items():
        if name not in known:
            raise JobError(
                f"--option {name}={value}: --cluster slurm has no such option; use one of {', '.join(known)}, "
                f"or --directive=--{name}=... for a line of Slurm's own"
            )
        _require_text(f"--option {name}", value)
    if options.get(LAUNCHER, "slurm") not in ("slurm", "ray"):
        raise JobError(f"--option {LAUNCHER}={options[LAUNCHER]}: must be slurm or ray")
    if LEAD in options and not options[LEAD].isdecimal():
        raise JobError(f"--option {LEAD}={options[LEAD]}: must be a whole number of seconds")


def _head(job: JobSpec, name: str, output: str, array: str) -> list[str]:
    own = dict(_directives(job, name, output, array))
    lines = [
        f"#SBATCH --{key}={_for_slurm(value)}" if value else f"#SBATCH --{key}" for key, value in own.items()
    ]
    lines += [f"#SBATCH {_passed_directive(line, own)}" for line in job.directives]
    about = f"# Trains {name!r}; written by moe-train, whose docs/operations.md explains it line by line."
    return ["#!/bin/bash", about, *lines]


def _directives(job: JobSpec, name: str, output: str, array: str) -> Iterator[tuple[str, str]]:
    """Ours, in order: name and value."""
    require_options(job.options)
    _require_text("name", name)
    yield "job-name", name
    yield "output", output
    yield "open-mode", "append"
    yield "export", "ALL"
    if array:
        yield "array", array
    yield from _of_resources(job.resources, "gres" in job.options)
    for option in PASSED_ON:
        if option in job.options:
            yield option, job.options[option]
    if job.after:
        yield "dependency", f"afterok:{':'.join(map(_job_id, job.after))}"
        yield "kill-on-invalid-dep", "yes"
    yield "requeue", ""
    yield "signal", f"B:USR1@{_lead_s(job)}"


def _of_resources(needs: Resources, has_gres: bool) -> Iterator[tuple[str, str]]:
    if needs.min_nodes in (None, needs.nodes):
        yield "nodes", str(needs.nodes)
        yield "ntasks-per-node", "1"
    else:  # with tasks, Slurm would take the smaller number, for which it then counts them
        yield "nodes", f"{needs.min_nodes}-{needs.nodes}"
    yield "cpus-per-task", str(needs.workers_per_node * (needs.cpus_per_worker or 1))
    if needs.gpus_per_worker and not has_gres:
        yield "gres", f"gpu:{needs.gpus_per_worker * needs.workers_per_node}"
    if needs.memory_gib is not None:
        yield "mem", f"{math.ceil(needs.memory_gib * 1024)}M"
    if needs.time_limit_min is not None:
        yield "time", str(needs.time_limit_min)


def _lead_s(job: JobSpec) -> int:
    lead_s, limit_min = int(job.options.get(LEAD, DEFAULT_LEAD_S)), job.resources.time_limit_min
    if limit_min is not None and lead_s >= 60 * limit_min:
        raise JobError(
            f"--time-limit {limit_min}: the run would be told to save {lead_s} s before the end, that is at once; "
            f"give it more minutes, or --option {LEAD}=SECONDS"
        )
    return lead_s


def _passed_directive(line: str, own: Mapping[str, str]) -> str:
    """A line for Slurm as it is, unless it is none or would undo one of ours."""
    _require_text("--directive", line)
    match = DIRECTIVE.fullmatch(line)
    if match is None:
        raise JobError(f"--directive {line}: is no option of sbatch; write it as --name=value")
    # sbatch takes the beginning of an option's name for it.
    undone = next((name for name in (*own, *OURS) if name.startswith(match[1])), None)
    if undone:
        raise JobError(
            f"--directive {line}: moe-train sets --{undone} itself, or relies on its absence; leave the line out, or "
            "use moe-train's own option for it"
        )
    return line


def _exports(job: JobSpec) -> Iterator[str]:
    for name, value in job.environment.items():
        _require_text(f"environment {name}", value)
        yield f"export {name}={shlex.quote(value)}"
    yield f"export {WORKERS_VARIABLE}={job.resources.workers_per_node}"
    if job.options.get(LAUNCHER) == "ray":
        yield f"export {SHARE_VARIABLE}={shlex.quote(_ray_share(job.resources))}"
    yield f'export {JOB_VARIABLE}="slurm:$SLURM_JOB_ID"'


def _command(job: JobSpec, python: str) -> str:
    launcher = job.options.get(LAUNCHER, "slurm")
    words = module_command("moe_train.cli", *job.command, "--launcher", launcher, python=python)
    if launcher == "ray":
        words = module_command("moe_cluster.ray_in_slurm", str(job.run_dir / JOBS_DIR), *words, python=python)
    for word in words:
        _require_text("command", word, may_be_empty=True)
    return f"command=({shlex.join(words)})"


def _ray_share(needs: Resources) -> str:
    resources = {"CPU": float(needs.cpus_per_worker or 1), "GPU": float(needs.gpus_per_worker)}
    share = Share({name: number for name, number in resources.items() if number}, needs.workers_per_node)
    return json.dumps(asdict(share))


def _require_alike(jobs: Sequence[JobSpec]) -> None:
    first = jobs[0]
    for job in jobs:
        if replace(job, name=first.name, run_dir=first.run_dir, command=first.command) != first:
            raise JobError(
                f"{job.name}: asks for other resources or options than {first.name}, and the jobs of an array share "
                "theirs; submit it by itself"
            )


def _job_id(text: str) -> str:
    if not JOB_ID.fullmatch(text):
        raise JobError(f"--after {text}: is no id of a Slurm job; use a number such as 123 or 123_4")
    return text


def _require_text(what: str, value: str, may_be_empty: bool = False) -> None:
    if CONTROL.search(value):
        raise JobError(
            f"{what}={value!r}: holds a line break or another control character; use another value"
        )
    if not value and not may_be_empty:
        raise JobError(f"{what}: is empty; give it a value, or leave it out")


def _pattern(folder: Path) -> str:
    """A folder's name where Slurm looks for patterns such as %j."""
    _require_text("run_dir", str(folder))
    if "\\" in str(folder):
        raise JobError(
            f"run_dir={folder}: Slurm takes a backslash for a sign of its own; use another --run-dir"
        )
    return str(folder).replace("%", "%%")


def _for_slurm(value: str) -> str:
    """A value as sbatch reads it from a directive: in double quotes, unless it is plain."""
    if re.fullmatch(r"[A-Za-z0-9_./:,@%+=-]+", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
