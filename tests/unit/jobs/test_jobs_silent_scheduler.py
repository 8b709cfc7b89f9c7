"""Commands that wait for a job, or list many, where the scheduler does not answer every question."""

import json
from pathlib import Path

import pytest
from small_run import Command
from stand_in_slurm import called, write_programs

from moe_cluster.contract import LOG_FILE, rank_dir
from moe_train.config.schema import Recipe
from moe_train.run_folder import accept_recipe, mark_finished

NO_ANSWER = "echo 'scontrol: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
# Without an answer at first; the job waits at the second question, and is over from the third on.
AT_TIMES = f"""
case $(wc -l <"$0.called") in
  1) {NO_ANSWER} ;;
  2) printf 'JobId=41 JobName=x\\n   JobState=PENDING\\n   NodeList=\\n' ;;
  *) printf 'JobId=41 JobName=x\\n   JobState=CANCELLED\\n   NodeList=\\n' ;;
esac
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of programs that are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def give_to_slurm(run_dir: Path) -> Path:
    """A run that has a job on record."""
    record = {
        "cluster": "slurm",
        "id": "41",
        "time": 1.0,
        "user": "u",
        "host": "h",
        "resources": {"nodes": 1},
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "jobs.jsonl").write_text(json.dumps({**record, "directives": []}) + "\n")
    return run_dir


def test_a_sweep_is_waited_for_though_its_scheduler_is_silent_for_a_while(
    moe_train: Command, tmp_path: Path, programs: Path
) -> None:
    write_programs(programs, sbatch="echo 41", scontrol=AT_TIMES)
    words = ("sweep", "small.yaml", "seed=0,1", "--cluster", "slurm", "--dir", str(tmp_path / "sweep"))
    ended = moe_train(*words, "--wait")
    assert ended.code == 1  # its runs did not finish
    assert (
        "seed=0: scontrol: Slurm's controller does not answer (Unable to contact slurm controller"
        in ended.errors
    )
    assert "; still waiting" in ended.errors
    assert ended.output.count("cancelled") == 2
    assert len(called(programs, "scontrol")) >= 4


def test_a_workers_log_is_followed_though_the_scheduler_is_silent_for_a_while(
    moe_train: Command, tmp_path: Path, programs: Path
) -> None:
    write_programs(programs, scontrol=AT_TIMES)
    run_dir = give_to_slurm(tmp_path / "run")
    rank_dir(run_dir, 1, 0).mkdir(parents=True)
    (rank_dir(run_dir, 1, 0) / LOG_FILE).write_text("step 1\n")
    assert moe_train("logs", "-f", str(run_dir), "--rank", "0").output == "step 1\n"
    assert len(called(programs, "scontrol")) == 3


def test_an_attempt_is_chosen_of_a_workers_logs_alone(moe_train: Command, tmp_path: Path) -> None:
    run_dir = give_to_slurm(tmp_path / "run")
    ended = moe_train("logs", str(run_dir), "--attempt", "1")
    ended.refuses("--attempt 1: needs --rank, because all attempts share", "add a worker, such as --rank 0")


def test_a_list_waits_once_for_a_silent_scheduler_and_asks_nothing_of_finished_runs(
    moe_train: Command, tmp_path: Path, programs: Path
) -> None:
    write_programs(programs, scontrol=NO_ANSWER)
    runs = [give_to_slurm(tmp_path / "runs" / name) for name in ("a", "b", "finished")]
    accept_recipe(runs[-1], Recipe())
    mark_finished(runs[-1], Recipe().steps)
    ended = moe_train("list", str(tmp_path / "runs"))
    assert ended.code == 0
    rows = [line.split()[:2] for line in ended.output.splitlines()[1:]]
    assert rows == [["a", "unknown"], ["b", "unknown"], ["finished", "finished"]]
    assert ended.errors.count("Unable to contact slurm controller") == 1
    assert len(called(programs, "scontrol")) == 1
