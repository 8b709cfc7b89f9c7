"""What `submit` leaves behind when the cluster takes nothing, and how a run inside a job says that it goes on."""

from pathlib import Path

from small_run import Command

from moe_cluster.contract import JOB_VARIABLE
from moe_train.launch import Launch, _resume_line

NOBODY = "http://127.0.0.1:9"  # the discard port, where nothing listens


def test_a_submission_that_nobody_takes_leaves_neither_a_record_nor_a_recipe(
    moe_train: Command, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ("submit", "small.yaml", "--cluster", "ray", "--address", NOBODY, "--run-dir", str(run_dir))
    moe_train(*words).refuses(f"--address {NOBODY}: there is no answer", code=1)
    assert [path for path in run_dir.rglob("*") if path.is_file()] == []


def test_inside_a_job_a_stopped_run_says_how_the_job_is_made_again() -> None:
    asked, run_dir = Launch("/r/my run/jobs/recipe-1.yaml", workers=4), Path("/r/my run")
    assert _resume_line(asked, run_dir, {JOB_VARIABLE: "slurm:12"}) == "moe-train resume '/r/my run'"
    assert _resume_line(asked, run_dir, {}).startswith(
        "moe-train run '/r/my run/jobs/recipe-1.yaml' --run-dir"
    )
