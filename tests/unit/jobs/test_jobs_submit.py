"""What `submit` leaves behind when the cluster takes nothing, and how a run inside a job says that it goes on."""

import json
from pathlib import Path

import pytest
from small_run import Command, contents, tree

from moe_cluster.contract import FAILED, JOB_VARIABLE, PREEMPTED
from moe_train.config.load import load_recipe
from moe_train.jobs.submission import write_recipe
from moe_train.launch import Launch, _command, _stopped
from moe_train.monitor.state import last_recipe

NOBODY = "http://127.0.0.1:9"  # the discard port, where nothing listens
TRANSLATION = ("objective.kind=translation", "model.architecture=encoder_decoder")


def test_a_submission_that_nobody_takes_leaves_nothing(moe_train: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = ("submit", "small.yaml", "--cluster", "ray", "--address", NOBODY, "--run-dir", str(run_dir))
    moe_train(*words).refuses(f"--address {NOBODY}: there is no answer", code=1)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--resume", "latest"], "latest is neither auto, never, nor a step number"),
        (
            ["--resume", "100"],
            "--resume 100: {run} has no checkpoint of that step; choose one of 2, 4, 6",
        ),
        (["--run-dir", ""], "argument --run-dir: must not be empty"),
        (["data.corpus.path=gone"], "gone: there is no such file or folder"),
        (["data.corpus.path=gone/*.txt"], "gone/*.txt: holds no text (0 files match"),
        (
            ["data.corpus.kind=parallel_files", "data.corpus.path=gone", *TRANSLATION],
            "gone: there is no such folder",
        ),
        (["--workers-per-node", "0"], "0 is not a whole number of at least 1"),
        (["steps=6"], "steps=6: {run} has already finished; raise steps to train on"),
    ],
)
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_what_cannot_run_is_refused_and_nothing_is_queued(
    moe_train: Command, run_dir: Path, cluster: str, words: list[str], part: str
) -> None:
    before = contents(run_dir)
    ended = moe_train("submit", "small.yaml", "--cluster", cluster, "--run-dir", str(run_dir), *words)
    ended.refuses(part.format(run=run_dir))
    assert contents(run_dir) == before


def test_a_step_that_a_run_has_not_saved_is_refused_where_there_is_no_run(
    moe_train: Command, tmp_path: Path
) -> None:
    ended = moe_train("submit", "small.yaml", "--run-dir", str(tmp_path / "new"), "--resume", "4")
    ended.refuses("--resume 4: ", "has no run to resume; use --resume auto")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cluster", ["local", "ray", "slurm"])
def test_a_secret_of_the_sites_file_reaches_no_cluster(
    moe_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "moe-train").mkdir()
    (tmp_path / "moe-train/cluster.yaml").write_text(f"{cluster}: {{environment: {{WANDB_API_KEY: hush}}}}")
    words = ("--cluster", cluster, *(("--address", NOBODY) if cluster == "ray" else ()))
    ended = moe_train("submit", "small.yaml", "--dry-run", *words)
    ended.refuses("environment WANDB_API_KEY: looks like a secret")
    assert "hush" not in ended.output + ended.errors


def test_nodes_of_ray_may_have_text_that_this_machine_has_not(moe_train: Command) -> None:
    words = ("--cluster", "ray", "--address", NOBODY, "--dry-run", "data.corpus.path=/only/there")
    assert moe_train("submit", "small.yaml", *words).code == 0
    moe_train("submit", "small.yaml", "--dry-run", words[-1]).refuses("/only/there: there is no such file")


@pytest.mark.parametrize(("workers_per_node", "spans"), [(1, True), (2, False), (4, False)])
def test_tensor_groups_that_span_nodes_are_noted_and_not_refused(
    moe_train: Command, workers_per_node: int, spans: bool
) -> None:
    words = ("small.yaml", "parallel.tensor=2", "--workers-per-node", str(workers_per_node))
    note = f"parallel.tensor=2: does not divide the {workers_per_node} workers of a node"
    job = moe_train("submit", *words, "--cluster", "slurm", "--nodes", "2", "--dry-run")
    assert job.code == 0
    assert (f"note: {note}" in job.errors) == spans
    assert job.output.startswith("#!")
    shown = moe_train("show", *words, "--workers", str(2 * workers_per_node))
    assert shown.code == 0
    assert (note in shown.output) == spans


@pytest.mark.parametrize(
    ("words", "part"), [(["--dir", ""], "must not be empty"), (["--at-once", "0"], "at least 1")]
)
def test_a_sweep_that_cannot_run_is_refused(moe_train: Command, words: list[str], part: str) -> None:
    moe_train("sweep", "small.yaml", "seed=0,1", *words).refuses(part)


def test_inside_a_job_a_stopped_run_says_how_the_job_is_made_again() -> None:
    asked, run_dir = Launch("/r/my run/jobs/recipe-1.yaml", workers=4), Path("/r/my run")
    assert _command(asked, run_dir, {JOB_VARIABLE: "slurm:12"}) == "moe-train resume '/r/my run'"
    assert _command(asked, run_dir, {}).startswith("moe-train run '/r/my run/jobs/recipe-1.yaml' --run-dir")


def test_the_command_that_resumes_has_all_that_the_run_was_started_with() -> None:
    asked = Launch(
        "r.yaml",
        ("steps=3", "name=a b"),
        workers=4,
        min_workers=2,
        launcher="slurm",
        resume="never",
        max_restarts=3,
    )
    assert _command(asked, Path("runs/x"), {}) == (
        "moe-train run r.yaml steps=3 'name=a b' --run-dir runs/x --workers 2:4 --launcher slurm --max-restarts 3"
    )


def test_a_job_that_is_stopped_too_early_again_and_again_is_not_queued_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_job, asked = {JOB_VARIABLE: "slurm:12"}, Launch("recipe.yaml")
    for number in range(1, 5):
        assert _stopped(asked, tmp_path, in_job) == PREEMPTED
        folder = tmp_path / f"attempts/{number}"
        folder.mkdir(parents=True)
        (folder / "outcome.json").write_text(json.dumps({"exit_code": PREEMPTED, "saved": None}))
    assert _stopped(asked, tmp_path, {}) == PREEMPTED
    capsys.readouterr()
    assert _stopped(asked, tmp_path, in_job) == FAILED
    assert "the last 4 attempts were each stopped before they saved anything new" in capsys.readouterr().err


def test_a_run_that_was_queued_and_never_began_is_resumed_as_it_was_submitted(
    moe_train: Command, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "jobs").mkdir(parents=True)
    write_recipe(run_dir / "jobs/recipe-1.yaml", load_recipe(Path("small.yaml")))
    record = {"cluster": "local", "id": "1", "time": 1.0, "user": "u", "host": "h", "resources": {"nodes": 1}}
    (run_dir / "jobs.jsonl").write_text(json.dumps({**record, "directives": [], "max_restarts": 2}) + "\n")
    script = moe_train("resume", str(run_dir), "--dry-run").output
    assert "recipe-2.yaml" in script
    assert "--max-restarts 2" in script
    assert last_recipe(run_dir) == run_dir / "jobs/recipe-1.yaml"
    (run_dir / "recipe.yaml").touch()
    assert last_recipe(run_dir) == run_dir / "recipe.yaml"
