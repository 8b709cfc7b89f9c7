"""`moe-train run` from end to end: one recipe on one worker and on several, and resumed on other layouts."""

import email
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_cache import fresh_cache

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny_model.yaml"
# Real text that is on every machine and does not change while the tests run.
TEXT = Path(email.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs and the cache of this module's tests."""
    return tmp_path_factory.mktemp("runs")


def run(folder: Path, name: str, *arguments: str) -> list[dict]:
    """Run the tiny recipe, with the number of threads that a run chooses by itself, and return its rows."""
    command = [
        *(sys.executable, "-m", "moe_train.cli", "run", str(TINY)),
        *("name=tiny", f"data.corpus.path={TEXT}", "data.validation_fraction=0.2", "model.dropout=0.1"),
        *(
            "optim.kind=adamw",
            "optim.lr=1e-3",
            "optim.schedule.kind=constant",
            "log_every=1",
            "validate_every=10",
            "checkpoint.every=10",
        ),
        *("--run-dir", str(folder / name), *arguments),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cluster")]),
        "MOE_TRAIN_CACHE": str(fresh_cache(folder)),
    }
    ended = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=150, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def training(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "loss" in row]


def validation(rows: list[dict]) -> dict[int, float]:
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


@pytest.fixture(scope="module")
def one_worker(folder):
    """The uninterrupted run that all others must equal."""
    return run(folder, "one_worker")


def assert_same_rows(rows: list[dict], expected: list[dict]) -> None:
    mine, theirs = training(rows), training(expected)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == list(range(1, 21))
    assert mine[0]["moe"]["load"] == theirs[0]["moe"]["load"]
    assert mine[0]["moe"]["dropped"] == theirs[0]["moe"]["dropped"]
    assert mine[0]["moe"]["experts_per_token"] == theirs[0]["moe"]["experts_per_token"]
    for row, other in zip(mine, theirs, strict=True):
        within = 1e-5 if row["step"] <= 10 else 1e-3
        assert row["loss"] == pytest.approx(other["loss"], rel=within), row["step"]
        assert row["losses"] == pytest.approx(other["losses"], rel=100 * within), row["step"]
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=100 * within), row["step"]
        for figure in ("router_entropy", "router_top_probability"):
            assert row["moe"][figure] == pytest.approx(other["moe"][figure], rel=100 * within), row["step"]
        assert row["tokens_seen"] == other["tokens_seen"] == row["step"] * 8 * 16
    assert validation(rows).keys() == validation(expected).keys() == {0, 10, 20}
    assert validation(rows) == pytest.approx(validation(expected), rel=1e-3)


def test_a_run_learns_and_counts_every_assignment(one_worker):
    rows = training(one_worker)
    assert validation(one_worker)[20] < validation(one_worker)[0]
    for row in rows:
        assert [sum(layer) for layer in row["moe"]["load"]] == [8 * 16, 8 * 16]


def test_two_workers_then_one_give_the_run_of_one_worker(folder, one_worker):
    """Ten steps on two workers that share the experts out, resumed on one."""
    run(folder, "resumed", "steps=10", "parallel.expert=2", "--workers", "2")
    rows = run(folder, "resumed", "parallel.expert=1", "--workers", "1")
    assert_same_rows(rows, one_worker)
    assert [row["step"] for row in rows if row.get("event") == "resume"] == [10]
    for rank in (0, 1):
        layout = json.loads((folder / "resumed" / f"attempts/1/rank-{rank}/layout.json").read_text())
        assert layout["experts"] == list(range(4 * rank, 4 * rank + 4))
        assert layout["parameters"]["layers.0.feedforward.experts.w_in"]["shape"] == [4, 32, 40]


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.distributed_exhaustive)])
def test_a_pyramid_of_experts_resumes_on_another_layout_inside_a_logging_window(folder, workers):
    """Step 5 ends no window of 4 steps, so counts of a layer of 4 experts and of one of 8 travel in its checkpoint."""
    pyramid = ("moe.num_experts=[4,8]", "log_every=4", "checkpoint.every=5", "steps=12")
    expected = {row["step"]: row for row in training(run(folder, f"pyramid-{workers}", *pyramid))}
    shared = (f"parallel.expert={workers}", "--workers", str(workers))
    moved = (*pyramid, "parallel.expert=1", "--workers", "1", "--resume", "5")
    run(folder, f"pyramid-{workers}-moved", *pyramid, *shared)
    resumed = [
        row for row in training(run(folder, f"pyramid-{workers}-moved", *moved)) if row["attempt"] == 2
    ]
    assert [row["step"] for row in resumed] == [8, 12]
    for row in resumed:
        assert [len(load) for load in row["moe"]["load"]] == [4, 8]
        assert [sum(load) for load in row["moe"]["load"]] == [4 * 8 * 16, 4 * 8 * 16]
        assert row["loss"] == pytest.approx(expected[row["step"]]["loss"], rel=1e-3)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "expert"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_every_layout_gives_the_run_of_one_worker(folder, one_worker, workers, expert):
    name = f"{workers}x{expert}"
    rows = run(folder, name, f"parallel.expert={expert}", "--workers", str(workers))
    assert_same_rows(rows, one_worker)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(
    ("first", "then"), [((1, 1), (4, 2)), ((4, 4), (2, 1)), ((4, 4), (1, 1)), ((2, 1), (2, 2))]
)
def test_a_run_goes_on_with_any_layout(folder, one_worker, first, then):
    name = f"{first}-{then}"
    run(folder, name, "steps=10", f"parallel.expert={first[1]}", "--workers", str(first[0]))
    rows = run(folder, name, f"parallel.expert={then[1]}", "--workers", str(then[0]))
    assert_same_rows(rows, one_worker)
