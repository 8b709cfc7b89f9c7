"""A job belongs to the folder that it was made for: a copy of the folder neither ends it nor asks about it."""

import json
import shutil
from pathlib import Path

import pytest
from small_run import RECIPE, write_corpus
from stand_in_slurm import begin, called, write_programs

from moe_cluster import records
from moe_train.jobs.standing import read_progress


@pytest.fixture
def terminal(tmp_path: Path) -> Path:
    """A working directory with a run that is queued on Slurm, as job 41, and a copy of its folder."""
    write_corpus(tmp_path / "corpus")
    (tmp_path / "small.yaml").write_text(RECIPE.format(corpus="corpus"))
    write_programs(tmp_path, sbatch="echo 41")
    code, output, errors = ended(tmp_path, "submit", "small.yaml", "--cluster", "slurm", "--run-dir", "run")
    assert code == 0, errors
    assert "submitted slurm:41" in output
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    return tmp_path


def ended(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    process = begin(folder, *words)
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


@pytest.mark.parametrize("command", ["cancel", "logs"])
def test_a_copy_names_the_folder_whose_jobs_these_are(terminal: Path, command: str) -> None:
    code, _, errors = ended(terminal, command, "copy")
    assert code == 2, errors
    assert f"copy: is a copy of {terminal / 'run'}, whose jobs (slurm:41) are not its own" in errors
    assert called(terminal, "scancel") == []


def test_a_copy_may_be_submitted_while_the_original_is_queued(terminal: Path) -> None:
    words = ("submit", "small.yaml", "--cluster", "slurm", "--run-dir")
    assert "its job slurm:41 is pending" in ended(terminal, *words, "run")[2]
    write_programs(terminal, sbatch="echo 42")
    assert ended(terminal, *words, "copy")[0] == 0
    assert [job.id for job in records.read(terminal / "copy")] == ["42"]
    assert [job.id for job in records.disowned(terminal / "copy")] == ["41"]
    assert ended(terminal, "cancel", "copy")[0] == 0
    assert called(terminal, "scancel") == ["42"]


def test_the_state_of_a_copy_is_not_that_of_the_originals_job(terminal: Path) -> None:
    assert read_progress(terminal / "copy").job is None
    assert ended(terminal, "status", "copy")[1].startswith("copy: unknown\n")


def test_a_folder_keeps_its_jobs_behind_a_link_and_where_it_is_moved(terminal: Path) -> None:
    (terminal / "link").symlink_to("run")
    (terminal / "run").rename(terminal / "moved")
    for name in ("link", "moved"):
        if name == "link":
            (terminal / "link").unlink()
            (terminal / "link").symlink_to("moved")
        assert [job.id for job in records.read(terminal / name)] == ["41"]
    assert ended(terminal, "cancel", "moved")[0] == 0
    assert called(terminal, "scancel") == ["41"]


def test_a_record_of_an_older_version_belongs_to_the_folder_that_it_is_in(terminal: Path) -> None:
    path = terminal / "copy/jobs.jsonl"
    record = json.loads(path.read_text())
    del record["place"]
    path.write_text(json.dumps(record) + "\n")
    assert [job.id for job in records.read(terminal / "copy")] == ["41"]
