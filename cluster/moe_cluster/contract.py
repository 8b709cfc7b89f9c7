"""Defines the contract between a launcher and the trainer: arguments, environment, folders, exit codes.

A launcher (this package) starts `python -P -m moe_train.worker` and knows nothing else of training; the trainer does
not know who started it. Everything they agree on is in this file, which both import.

Arguments   python -P -m moe_train.worker RECIPE --run-dir DIR --resume auto|never|STEP
            RECIPE is a resolved recipe file (no `_base`, no overrides).
Environment RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torch elastic sets them (absent:
            one worker), and ATTEMPT_VARIABLE and LAUNCHER_VARIABLE below.
Folders     DIR/attempts/K/rank-R/{log.txt,error.json,heartbeat.json,layout.json}, K counted from 1;
            the launcher's own DIR/attempts/K/{recipe.yaml,launcher.log,outcome.json,
            findings.jsonl} beside them. DIR/recipe.yaml is
            what the run was last trained with: the trainer replaces it once it has accepted the new one.
            heartbeat.json is {pid, host, step, time, step_time, phase, parts, is_paced, patience_s, where,
            layer, collective, waiting, stop}; it appears once the worker handles signals, and is rewritten every
            second whatever the worker does. step_time: when the last step ended. phase: starting, training, validating,
            translating, checkpoint, ending, ended. parts: of the phase that are done, such as batches of a
            validation. is_paced: whether the phase advances in steps or such parts.
            patience_s: how long the phase may last without a step or a part before it counts as a hang; null:
            not known yet. where: the line of our code at which the main thread is. layer: the layer of the model
            and the direction of the pass that it is in ("layers.3 backward"), or null. collective: the one that it
            waits in ("all_reduce over tensor"), once half of the patience is over; else null. waiting: the share of
            the last seconds in which it waited for other workers, 0 to 1. stop: the reason of a stop request, or null.
            A hang leaves rank-R/stacks.txt (all threads) and rank-R/collectives.json (torch's flight recorder).
            error.json is {rank, host, pid, step, time, type, message, explained, traceback, exit_code}; it
            appears where a worker fails by itself. explained: the message says all that a user needs.
            step is null before the first step; times are in seconds since 1970.
            ending.json, beside error.json, is {exit_code, host, time}: how whoever started a worker on another node saw
            it end.
            outcome.json is {exit_code, cause, rank, host, step, saved, time}: how the launcher saw the attempt end.
            saved: the step of the newest checkpoint by then, or null.
            lost.json is {job}: the cluster started this job again, whose last attempt this was (`restarts.py`).
            bad-nodes.json is {time, nodes: {host: why}}: nodes that the preflight found unfit (`node/bad_nodes.py`).
            findings.jsonl has a line for each hang and straggler that the launcher saw (`watch/findings.py`).
            DIR/attempts/K/stop.json is {reason}: whoever writes it (`request_stop`) asks all workers of the attempt to
            stop, where no signal reaches them. An end.json (`request_end`) has them end at once, with FAILED; so
            has a DIR/attempts/K+1.
Exit codes  DONE, FAILED, USAGE, PREEMPTED below.
Signals     SIGTERM, SIGINT and, for a time limit, SIGUSR1 ask a worker to stop: all ranks agree on a step, save
            it, and end with PREEMPTED.
"""

import json
from pathlib import Path

from moe_cluster.atomic import replace_text

DONE = 0
"""The run reached its last step."""
FAILED = 1
"""Something broke; `error.json` of the rank that broke first says what."""
USAGE = 2
"""The recipe or the command line cannot be used; starting again changes nothing."""
PREEMPTED = 75
"""Stopped on request, saved, and resumable: not a failure (75 is EX_TEMPFAIL of sysexits.h)."""

ATTEMPT_VARIABLE = "MOE_TRAIN_ATTEMPT"
"""Number of this attempt at the run, from 1; what an older attempt commits later is not used."""
LAUNCHER_VARIABLE = "MOE_TRAIN_LAUNCHER_PID"
"""Process id of a launcher on this host. A worker ends if that process is gone."""

JOB_VARIABLE = "MOE_TRAIN_JOB"
"""`CLUSTER:ID` of the job that a launcher belongs to; a job that was queued again is still the same one."""

TRAINER_MODULE = "moe_train.worker"

LOG_FILE = "log.txt"
ERROR_FILE = "error.json"
HEARTBEAT_FILE = "heartbeat.json"
LAYOUT_FILE = "layout.json"
STACKS_FILE = "stacks.txt"
COLLECTIVES_FILE = "collectives.json"
STOP_FILE = "stop.json"
END_FILE = "end.json"
BAD_NODES_FILE = "bad-nodes.json"
ENDING_FILE = "ending.json"
LAUNCHER_LOG = "launcher.log"
OUTCOME_FILE = "outcome.json"
LOST_FILE = "lost.json"

ENDED = "ended"
"""The phase in the last heartbeat of a worker, however it ends."""


def node_log(node: str) -> str:
    """Returns the name of one node's log, beside LAUNCHER_LOG, where each node has a launcher of its own."""
    return f"launcher-{node}.log"


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    """Returns the folder of one attempt."""
    return run_dir / "attempts" / str(attempt)


def rank_dir(run_dir: Path, attempt: int, rank: int) -> Path:
    """Returns the folder where a rank of an attempt writes its log, error, heartbeat and layout."""
    return attempt_dir(run_dir, attempt) / f"rank-{rank}"


def in_attempts(run_dir: Path, name: str) -> list[Path]:
    """Returns the files of that name in the folders of the run's attempts, in the attempts' order."""
    return sorted(run_dir.glob(f"attempts/*/{name}"), key=lambda path: int(path.parent.name))


def trainer_arguments(recipe: Path, run_dir: Path, resume: str) -> list[str]:
    """Returns the arguments of the trainer module, after `python -P -m moe_train.worker`."""
    return [str(recipe), "--run-dir", str(run_dir), "--resume", resume]


def request_stop(run_dir: Path, attempt: int, reason: str) -> None:
    """Ask all workers of an attempt, on any host, to save and stop. Raises OSError."""
    _write_reason(attempt_dir(run_dir, attempt) / STOP_FILE, reason)


def request_end(run_dir: Path, attempt: int, reason: str) -> None:
    """Ask all workers of an attempt, on any host, to end at once without saving. Raises OSError."""
    _write_reason(attempt_dir(run_dir, attempt) / END_FILE, reason)


def requested_stop(run_dir: Path, attempt: int) -> str | None:
    """Returns the reason given to `request_stop` for this attempt; None without a request."""
    return _read_reason(attempt_dir(run_dir, attempt) / STOP_FILE)


def requested_end(run_dir: Path, attempt: int) -> str | None:
    """Returns the reason given to `request_end` for this attempt; None without a request."""
    return _read_reason(attempt_dir(run_dir, attempt) / END_FILE)


def _write_reason(path: Path, reason: str) -> None:
    replace_text(path, json.dumps({"reason": reason}) + "\n")


def _read_reason(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"a {path.name} that cannot be read"
