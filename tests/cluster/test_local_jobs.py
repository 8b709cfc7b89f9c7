"""Jobs in the background of this machine, from outside: submitted, asked about, read, ended, gone on with, swept."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from own_processes import OwnProcesses, wait_for
from small_run import RECIPE, last_validation, lay_traps, train_alone, write_corpus

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
ENDLESS = "steps=100000"


class Terminal:
    """A working directory with a small recipe, and commands typed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, OwnProcesses()
        write_corpus(folder / "corpus")
        lay_traps(folder)
        (folder / "small.yaml").write_text(RECIPE.format(corpus="corpus"))

    def __call__(self, *words: str, code: int = 0) -> str:
        """Output of a command that ends with `code`: what it printed, or else its one error."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "moe_train.cli", *words],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cluster", ROOT / "kernels"))),
                "MOE_TRAIN_CACHE": str(self.folder / "cache"),
                "XDG_CONFIG_HOME": str(self.folder),
                **self.processes.environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    def status(self, run: str = "small") -> dict:
        return json.loads(self("status", run, "--json"))

    def wait(self, state: str, run: str = "small") -> dict:
        wait_for(lambda: self.status(run)["state"] == state, every_s=0.3)
        return self.status(run)

    def wait_for_step(self, run: str = "small") -> None:
        wait_for(lambda: (self.status(run)["step"] or 0) > 0, every_s=0.3)


@pytest.fixture
def terminal(tmp_path: Path):
    terminal = Terminal(tmp_path)
    yield terminal
    if terminal.processes.living() and (tmp_path / "runs/small/jobs.jsonl").exists():
        terminal("cancel", "small")
    wait_for(lambda: not terminal.processes.living())


def test_representative_a_job_trains_as_a_run_in_the_foreground_does(terminal: Terminal) -> None:
    said = terminal("submit", "small.yaml", "steps=8")
    found = terminal.wait("finished")
    assert f"submitted local:{found['job']['id']}" in said
    assert (found["step"], found["saved_step"], found["attempts"]) == (8, 8, 1)
    train_alone(
        terminal.folder, terminal.folder / "alone", "steps=8", f"data.corpus.path={terminal.folder}/corpus"
    )
    assert last_validation(terminal.folder / "runs/small") == last_validation(terminal.folder / "alone")
    assert "step 8  finished" in terminal("logs", "-f", "small")
    assert "step 8" not in terminal(
        "logs", "small", "--rank", "0"
    )  # what goes to the terminal is not logged twice
    assert "steps=8: " in terminal("submit", "small.yaml", "steps=8", code=2)


def test_representative_a_job_is_ended_saves_and_goes_on(terminal: Terminal) -> None:
    terminal("submit", "small.yaml", ENDLESS)
    terminal.wait_for_step()
    refused = terminal("submit", "small.yaml", ENDLESS, code=1)
    assert "its job local:" in refused
    assert "moe-train cancel" in refused
    terminal("cancel", "small")
    stopped = terminal.wait("stopped")
    assert stopped["saved_step"] == stopped["step"] or stopped["saved_step"] > stopped["step"] - 2
    steps = stopped["saved_step"] + 4
    terminal("resume", "small", f"steps={steps}")
    found = terminal.wait("finished")
    assert (found["step"], found["attempts"]) == (steps, 2)
    wait_for(lambda: terminal.status()["scheduler"]["state"] == "done", every_s=0.3)
    assert "has already ended" in terminal("cancel", "small")


def test_a_job_that_starts_afresh_keeps_what_it_is_known_by(terminal: Terminal) -> None:
    terminal("run", "small.yaml", "steps=2")
    terminal("submit", "small.yaml", ENDLESS, "--resume", "never")
    terminal.wait_for_step()
    assert terminal.status()["state"] == "running"
    assert "its job local:" in terminal("submit", "small.yaml", ENDLESS, code=1)
    assert "it is now" in terminal("logs", "small")
    terminal("cancel", "small")
    assert terminal.wait("stopped")["attempts"] == 1
    assert (terminal.folder / "runs/small.old-1/finished.json").exists()


def test_only_the_machine_that_has_a_job_speaks_of_it(terminal: Terminal) -> None:
    terminal("submit", "small.yaml", ENDLESS)
    terminal.wait_for_step()
    (file,) = (terminal.folder / "runs/small/jobs").glob("*.json")
    known = file.read_text()
    file.write_text(known.replace(socket.gethostname(), "elsewhere"))
    for words in (("cancel", "small"), ("submit", "small.yaml", ENDLESS)):
        assert ": runs on elsewhere; run this command there" in terminal(*words, code=1)
    assert terminal.status()["state"] == "running"
    file.write_text(known)


def test_a_job_whose_processes_were_killed_is_not_said_to_run(terminal: Terminal) -> None:
    terminal("submit", "small.yaml", ENDLESS)
    terminal.wait_for_step()
    for pid in terminal.processes.living():
        os.kill(pid, 9)
    wait_for(lambda: not terminal.processes.living())
    assert terminal.status()["scheduler"]["state"] == "failed"
    assert terminal.status()["state"] in ("failed", "killed")


def test_the_first_cause_of_a_failure_is_what_status_says(terminal: Terminal) -> None:
    refused = terminal("submit", "small.yaml", "data.corpus.path=nothing", code=2)
    assert f"{terminal.folder / 'nothing'}: there is no such file or folder" in refused
    (terminal.folder / "nothing").mkdir()
    terminal("submit", "small.yaml", "--max-restarts", "0", "data.corpus.path=nothing")
    found = terminal.wait("failed")
    assert "data.corpus.path" in found["said"]
    assert str(terminal.folder / "nothing") in found["said"]


def test_a_dry_run_writes_and_starts_nothing(terminal: Terminal) -> None:
    before = sorted(terminal.folder.rglob("*"))
    printed = terminal("submit", "small.yaml", "--dry-run", "name=it's $(touch x)")
    assert "--launcher local" in printed
    assert sorted(terminal.folder.rglob("*")) == before
    assert not terminal.processes.living()


def test_a_sweep_runs_one_after_the_other_and_ends_with_a_table(terminal: Terminal) -> None:
    words = ("sweep", "small.yaml", "steps=4", "seed=1,2")
    found = json.loads(terminal(*words, "--at-once", "1", "--wait", "--json").partition("\n")[2])
    assert sorted(Path(run["run_dir"]).name for run in found) == ["seed=1", "seed=2"]
    assert [run["state"] for run in found] == ["finished", "finished"]
    assert found[0]["validation_loss"] <= found[1]["validation_loss"]
    assert "submitted 0 of 2 runs" in terminal(*words, "--at-once", "1")
    assert terminal("list", "runs/small-sweep").count("finished") == 2


def test_one_waiting_run_of_a_sweep_is_cancelled_alone(terminal: Terminal) -> None:
    terminal("sweep", "small.yaml", ENDLESS, "seed=1,2", "--at-once", "1")
    first, second = "runs/small-sweep/seed=1", "runs/small-sweep/seed=2"
    terminal.wait_for_step(first)
    assert terminal.status(second)["state"] == "queued"
    terminal("cancel", second)
    assert terminal.status(second)["state"] == "cancelled"
    assert terminal.status(first)["state"] == "running"
    terminal("cancel", first)
    terminal.wait("stopped", first)
    wait_for(lambda: not terminal.processes.living())
    assert not (terminal.folder / second / "attempts").exists()


def test_what_has_no_job_cannot_be_cancelled_and_the_way_out_is_told(terminal: Terminal) -> None:
    terminal("run", "small.yaml", "steps=2")
    refused = terminal("cancel", "small", code=2)
    assert "so it has no job" in refused
    assert terminal.status()["state"] == "finished"
    assert "there is no run folder" in terminal("status", "gone", code=2)


def test_what_the_local_backend_does_not_have_is_refused(terminal: Terminal) -> None:
    for words, part in (
        (("--nodes", "2"), "--nodes 2: --cluster local has only this node"),
        (("--option", "partition=gpu"), "--option partition"),
        (("--directive=--nice",), "--directive --nice"),
        (("--after", "12"), "--after"),
    ):
        assert part in terminal("submit", "small.yaml", *words, code=2)
    assert not (terminal.folder / "runs").exists()
