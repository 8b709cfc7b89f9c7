"""How a run stands: one word, the same from every command."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import Command, Ended

from moe_cluster import records
from moe_cluster.contract import DONE, FAILED, OUTCOME_FILE, PREEMPTED, USAGE, attempt_dir
from moe_cluster.job import Resources
from moe_cluster.place import Place
from moe_cluster.records import JobRecord
from moe_train.identity import Identity, Origin, new_id
from moe_train.monitor.page.document import write_page
from moe_train.monitor.run import read_run
from moe_train.run_folder import RunFolder

CAUSE = "data.corpus: the text has changed"


def attempt(run_dir: Path, number: int, exit_code: int | None, *, started: bool = True) -> None:
    """Make the folder of an attempt that ended so; None: its launcher was killed."""
    folder = attempt_dir(run_dir, number)
    (folder / "rank-0").mkdir(parents=True)
    if started:
        (folder / "start.json").write_text(json.dumps({"attempt": number, "resumed_from": None}))
    if exit_code is not None:
        cause = None if exit_code in (DONE, PREEMPTED) else CAUSE
        (folder / OUTCOME_FILE).write_text(json.dumps({"exit_code": exit_code, "cause": cause}))
    if exit_code in (FAILED, USAGE):
        (folder / "rank-0/error.json").write_text(json.dumps({"message": CAUSE}))


def event(run_dir: Path, name: str) -> None:
    """Write an event as the last row."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": name, "step": 4, "attempt": 1}) + "\n")


def nothing(run_dir: Path) -> None:
    """A recipe alone."""


def finished(run_dir: Path) -> None:
    attempt(run_dir, 1, DONE)
    event(run_dir, "finished")
    (run_dir / "finished.json").write_text(json.dumps({"step": 4}))


def finished_and_an_attempt_refused(run_dir: Path) -> None:
    finished(run_dir)
    attempt(run_dir, 2, USAGE, started=False)


def stopped(run_dir: Path) -> None:
    attempt(run_dir, 1, PREEMPTED)
    event(run_dir, "stopped")


def stopped_and_an_attempt_refused(run_dir: Path) -> None:
    stopped(run_dir)
    attempt(run_dir, 2, USAGE, started=False)


def refused_at_once(run_dir: Path) -> None:
    attempt(run_dir, 1, USAGE, started=False)


def failed(run_dir: Path) -> None:
    attempt(run_dir, 1, FAILED)
    event(run_dir, "not_finite")


def killed(run_dir: Path) -> None:
    attempt(run_dir, 1, None)
    event(run_dir, "start")


def forked(run_dir: Path) -> None:
    """It holds a checkpoint of another run and was not trained yet, so it can be resumed like one that was stopped."""
    Identity(new_id(), Place.of(run_dir), forked_from=Origin(1, 4, new_id())).write(run_dir)


def forked_and_an_unreadable_identity(run_dir: Path) -> None:
    (run_dir / "run.json").write_text("{")


def submitted_and_over(run_dir: Path) -> None:
    """Of a job whose file is gone nobody can tell."""
    records.append(run_dir, JobRecord("local", "1", time.time(), "u", "h", Resources()))


CASES: list[tuple[Callable[[Path], None], str, str]] = [
    (nothing, "unknown", ""),
    (finished, "finished", ""),
    (finished_and_an_attempt_refused, "finished", f"attempt 2 was refused: {CAUSE}"),
    (stopped, "stopped", ""),
    (stopped_and_an_attempt_refused, "stopped", f"attempt 2 was refused: {CAUSE}"),
    (refused_at_once, "failed", CAUSE),
    (failed, "failed", CAUSE),
    (killed, "killed", ""),
    (forked, "stopped", ""),
    (forked_and_an_unreadable_identity, "unknown", ""),
    (submitted_and_over, "unknown", "cannot be read"),
]


def of_all_commands(moe_train: Command, run_dir: Path) -> tuple[set[str], Ended]:
    """The words of status, list, monitor, its page and the results of a sweep; and what `status` printed."""
    status = moe_train("status", str(run_dir))
    words = {status.output.splitlines()[0].rpartition(": ")[2]}
    words.add(json.loads(moe_train("status", str(run_dir), "--json").output)["state"])
    words |= {row["state"] for row in json.loads(moe_train("list", str(run_dir.parent), "--json").output)}
    words.add(moe_train("monitor", str(run_dir)).output.splitlines()[0].rpartition(": ")[2])
    page = run_dir.parent / "page.html"
    write_page(read_run(run_dir), page)
    words.add(page.read_text().partition("of 4: ")[2].partition('"')[0].partition("<")[0])
    sweep = moe_train("sweep", "small.yaml", "seed=0,1", "--dir", str(run_dir.parent), "--results", "--json")
    words |= {row["state"] for row in json.loads(sweep.output)}
    return words, status


@pytest.fixture
def bare_run(tmp_path: Path) -> Path:
    """A folder with a recipe of 4 steps, named as a run of a sweep."""
    run_dir = tmp_path / "seed=0"
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text("name: x\nsteps: 4\n")
    return run_dir


@pytest.mark.parametrize(("make", "word", "said"), CASES, ids=[case[0].__name__ for case in CASES])
def test_every_command_has_the_same_word(
    moe_train: Command, bare_run: Path, make: Callable[[Path], None], word: str, said: str
) -> None:
    make(bare_run)
    words, status = of_all_commands(moe_train, bare_run)
    assert words == {word}
    assert said in status.output


def test_a_run_that_is_going_on_is_running_for_every_command(moe_train: Command, bare_run: Path) -> None:
    with RunFolder(bare_run):
        words, _ = of_all_commands(moe_train, bare_run)
    assert words == {"running"}
