"""Runs `moe-train status`, `list`, `logs` and `cancel`, which work on every cluster. Imports no torch."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from moe_cluster import records
from moe_cluster.contract import DONE, LOG_FILE, rank_dir
from moe_cluster.errors import ClusterError
from moe_cluster.executor import executor
from moe_cluster.records import JobRecord
from moe_cluster.tail import SCHEDULER_S, lines_of, plain
from moe_train.arguments import Parser
from moe_train.checkpoint.lineage import newest_attempt
from moe_train.errors import MoETrainError, RunError, UsageError, dangling_link
from moe_train.jobs.standing import MARKS, Progress, age, read_progress, run_folder
from moe_train.run_folder import RunFolder


def status(arguments: Sequence[str]) -> int:
    """Print the state of one run."""
    parser = _parser("status", "Show the state of a run: its job, its training and its last failure.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    progress = read_progress(run_folder(options.run), ask_finished=True)
    if options.json:
        print(json.dumps(progress.as_dict(), indent=1))
    else:
        print("\n".join(_sentences(progress)))
    return DONE


def list_runs(arguments: Sequence[str]) -> int:
    """Print a table of all runs below a folder."""
    parser = Parser("moe-train list", description="List all runs below a folder, one per row.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="(default: runs)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    options = parser.parse_args(arguments)
    if link := dangling_link(options.folder):
        raise UsageError(f"{options.folder}: {link}; correct or remove the link, or name another folder")
    # Path.is_dir fails for a name that is too long or a folder without permission.
    if not os.path.isdir(options.folder):
        raise UsageError(
            f"{options.folder}: there is no such folder; `moe-train run RECIPE` creates runs/NAME"
        )
    print_runs(list(_progress_below(options.folder)), options.folder, as_json=options.json)
    return DONE


def logs(arguments: Sequence[str]) -> int:
    """Print the output of a run's job, or the log of one of its workers."""
    parser = _parser("logs", "Print the output of a run's job, or the log of one of its workers.")
    parser.add_argument("-f", "--follow", action="store_true", help="follow the output until the job ends")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="print the log of this worker instead of the job's output"
    )
    parser.add_argument(
        "--attempt",
        type=int,
        metavar="K",
        help="with --rank: print the log of this attempt (default: the newest)",
    )
    options = parser.parse_args(arguments)
    if options.attempt is not None and options.rank is None:
        raise UsageError(
            f"--attempt {options.attempt}: needs --rank, because all attempts share the job's output; add a worker, "
            "such as --rank 0"
        )
    run_dir = run_folder(options.run)
    if options.rank is not None:
        lines = _rank_log(run_dir, options.attempt, options.rank, options.follow)
    else:
        job = _last_job(run_dir)
        lines = executor(job.cluster, job.options).logs(job.id, run_dir, options.follow)
    shown = lines if sys.stdout.isatty() else map(plain, lines)
    for line in shown:
        print(line, flush=options.follow)
    return DONE


def cancel(arguments: Sequence[str]) -> int:
    """Cancel a run's job."""
    parser = _parser(
        "cancel", "Cancel a run's job. It saves a checkpoint if the cluster leaves it enough time."
    )
    options = parser.parse_args(arguments)
    run_dir = run_folder(options.run)
    job = _last_job(run_dir)
    backend = executor(job.cluster, job.options)
    before = backend.status(job.id, run_dir)
    if before.state.is_over:
        print(f"{job} has already ended: {before.state} {before.reason}".rstrip())
        return DONE
    backend.cancel(job.id, run_dir)
    print(f"{job} is being cancelled; resume it later with `moe-train resume {options.run}`")
    return DONE


def print_runs(runs: Sequence[Progress], folder: Path, *, as_json: bool) -> None:
    """Print a table of runs, or a JSON list."""
    if as_json:
        print(json.dumps([progress.as_dict() for progress in runs], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "step", "loss", "validation", "saved", "attempts", "job", "last row"):
        right = title in ("step", "loss", "validation", "saved", "attempts")
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "run")
    for progress in runs:
        name = progress.run_dir.relative_to(folder.absolute())
        table.add_row(str(name), progress.state, *_cells(progress))
    # A pipe has no width of its own, and a narrow default would cut off the rows.
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=width).print(table)


def _progress_below(folder: Path) -> list[Progress]:
    """Returns the state of every run. A scheduler that does not answer is asked and reported only once."""
    runs: list[Progress] = []
    silent: list[str] = []
    for run_dir in _runs_below(folder.absolute()):
        try:
            last = records.read(run_dir)[-1:]
            cluster = f"{last[0].cluster} {dict(last[0].options)}" if last else ""
            progress = read_progress(run_dir, ask=cluster not in silent)
        except (MoETrainError, ClusterError) as error:
            print(f"{run_dir}: {error}", file=sys.stderr)
            continue
        runs.append(progress)
        if progress.is_unanswered and cluster not in silent:
            silent.append(cluster)
            print(f"{run_dir}: {progress.said}", file=sys.stderr)
    return runs


def _runs_below(folder: Path) -> Iterator[Path]:
    """Yield run folders in order of their names. The walk does not enter run folders, which may be large, and follows
    links only to run folders."""

    def unreadable(error: OSError) -> None:
        print(RunError.unreadable(folder, error), file=sys.stderr)

    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        if any(mark in files for mark in MARKS):
            folders.clear()
            yield Path(path)
        for name in folders:
            if _is_linked_run(Path(path, name), folder):
                yield Path(path, name)


def _is_linked_run(path: Path, folder: Path) -> bool:
    """Returns whether a link leads to a run folder outside `folder`; one inside is listed at its own place."""
    if not path.is_symlink() or path.resolve().is_relative_to(folder.resolve()):
        return False
    return any((path / mark).is_file() for mark in MARKS)


def _last_job(run_dir: Path) -> JobRecord:
    """Returns the run's last job. Raises UsageError if it has none."""
    jobs = records.read(run_dir)
    if not jobs and (others := records.disowned(run_dir)):
        original = others[-1].place.path if others[-1].place else "another folder"
        raise UsageError(
            f"RUN={run_dir}: is a copy of {original}, whose jobs ({', '.join(map(str, others))}) are not its own; "
            "name that folder to query or cancel them, or start a job for the copy with `moe-train submit`"
        )
    if not jobs:
        hint = (
            "stop it where it runs (Ctrl-C)"
            if RunFolder(run_dir).is_held()
            else "start one with `moe-train submit`"
        )
        raise UsageError(
            f"RUN={run_dir}: was started with `moe-train run`, so it has no job; {hint}; print a worker's log with "
            "`moe-train logs RUN --rank 0`"
        )
    return jobs[-1]


def _rank_log(run_dir: Path, attempt: int | None, rank: int, follow: bool) -> Iterator[str]:
    try:
        newest = newest_attempt(run_dir)
        path = rank_dir(run_dir, attempt or newest, rank) / LOG_FILE
        is_there = path.exists()
    except OSError as error:
        raise RunError.unreadable(run_dir, error) from None
    if not is_there:
        raise UsageError(f"--rank {rank}: there is no {path}; the run has attempts 1 to {newest}")
    return lines_of(path, lambda: not (follow and read_progress(run_dir).may_run), SCHEDULER_S)


def _sentences(progress: Progress) -> list[str]:
    lines = [f"{progress.run_dir.name}: {progress.state}"]
    if progress.job is not None:
        state = f" is {progress.status.state}" if progress.status else ": its scheduler did not answer"
        nodes = f" on {', '.join(progress.status.nodes)}" if progress.status and progress.status.nodes else ""
        lines.append(f"  job        {progress.job}{state}{nodes}")
    if progress.step is not None:
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        validation = (
            "" if progress.validation_loss is None else f", validation loss {progress.validation_loss:.4f}"
        )
        lines.append(f"  training   step {progress.step:,} of {progress.steps or 0:,}{loss}{validation}")
    if progress.tokens_per_second is not None and progress.since is not None:
        left = f", {_duration(progress.left_s)} left" if progress.left_s is not None else ""
        lines.append(
            f"  speed      {progress.tokens_per_second:,.0f} tokens/s{left}; last row {age(progress.since)}"
        )
    checkpoint = "nothing yet" if progress.saved_step is None else f"step {progress.saved_step:,}"
    lines.append(f"  saved      {checkpoint}; attempts: {progress.attempts}")
    if progress.said:
        lines.append("  message    " + progress.said.replace("\n", "\n             "))
    return [*lines, f"  folder     {progress.run_dir}"]


def _cells(progress: Progress) -> tuple[str, ...]:
    def number(value: float | None, style: str) -> str:
        return "-" if value is None else format(value, style)

    step = "-" if progress.step is None else f"{progress.step:,}/{progress.steps or 0:,}"
    return (
        step,
        number(progress.loss, ".4f"),
        number(progress.validation_loss, ".4f"),
        number(progress.saved_step, ","),
        str(progress.attempts),
        str(progress.job or "-"),
        "-" if progress.since is None else age(progress.since),
    )


def _duration(seconds: float | None) -> str:
    minutes, rest = divmod(int(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _parser(command: str, what: str) -> argparse.ArgumentParser:
    parser = Parser(f"moe-train {command}", description=what)
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name below runs/")
    return parser
