"""`moe-train fork`: a new run from a checkpoint of another, which neither run confuses with its own."""

import json
import shutil
from pathlib import Path

import pytest
from small_run import Command, last_validation, tree

from moe_train.checkpoint.manifest import read_manifest
from moe_train.identity import read_identity


def forked(run_dir: Path) -> Path:
    """Where tests put the new run."""
    return run_dir.with_name("new")


def test_a_fork_trains_on_exactly_and_leaves_the_other_run_alone(
    moe_train: Command, run_dir: Path, straight: float
) -> None:
    before, new = tree(run_dir), forked(run_dir)
    ended = moe_train("fork", str(run_dir), str(new), "--step", "4")
    assert (ended.code, ended.errors) == (0, "")
    assert sorted(path.name for path in new.iterdir()) == [
        "checkpoints",
        "recipe.yaml",
        "run.json",
        "tokenizer.json",
    ]
    identity, parent = read_identity(new), read_identity(run_dir)
    assert identity is not None
    assert parent is not None
    assert identity.id != parent.id
    assert identity.parent == str(run_dir)
    assert identity.forked_from is not None
    assert (identity.forked_from.run, identity.forked_from.step) == (parent.id, 4)

    command = ended.output.splitlines()[-1].partition("train it:")[2].split()
    assert command[:2] == ["moe-train", "run"]
    trained = moe_train(*command[1:], "steps=8")
    assert (trained.code, trained.errors) == (0, "moe-train: steps=8: changed from 6 by this resume\n")
    assert "from step 4" in trained.output
    assert last_validation(new) == straight
    written = {step: read_manifest(new / f"checkpoints/step_{step:08d}").run for step in (4, 6, 8)}
    assert written == {4: parent.id, 6: identity.id, 8: identity.id}
    assert tree(run_dir) == before


def test_without_a_step_the_newest_good_checkpoint_is_taken(moe_train: Command, run_dir: Path) -> None:
    (run_dir / "checkpoints/step_00000006/rank-00000.safetensors").write_bytes(b"")
    ended = moe_train("fork", str(run_dir), str(forked(run_dir)))
    assert ended.code == 0
    assert "step_00000006: is invalid (" in ended.errors
    assert (forked(run_dir) / "checkpoints/latest").read_text() == "step_00000004\n"


def test_a_fork_of_a_finished_run_says_to_raise_the_steps(moe_train: Command, run_dir: Path) -> None:
    ended = moe_train("fork", str(run_dir), str(forked(run_dir)))
    assert ended.output.splitlines()[-1].endswith(" steps=12")


def test_a_fork_goes_on_with_the_workers_that_its_recipe_was_trained_with(
    moe_train: Command, run_dir: Path
) -> None:
    for path in (run_dir / "recipe.yaml", *run_dir.glob("attempts/1")):
        if path.is_dir():
            (path / "rank-1").mkdir()
        else:
            path.write_text(path.read_text().replace("  expert: 1\n", "  expert: 2\n"))
    new, again = forked(run_dir), run_dir.with_name("again")
    for source, target in ((run_dir, new), (new, again)):  # a fork that was not trained yet, too
        line = moe_train("fork", str(source), str(target)).output.splitlines()[-1]
        words = line.partition("train it:")[2].split()
        assert words[words.index("--workers") + 1] == "2"
        assert moe_train(*words[1:], "--dry-run").code == 0
        job = moe_train("resume", str(target), "steps=12", "--dry-run")
        assert (job.code, job.errors) == (0, "")
        assert "--workers 2" in job.output


def test_a_fork_keeps_model_and_seed_and_may_be_forked_again(moe_train: Command, run_dir: Path) -> None:
    new = forked(run_dir)
    assert moe_train("fork", str(run_dir), str(new), "--step", "2").code == 0
    words = ("run", str(new / "recipe.yaml"), "--run-dir", str(new))
    moe_train(*words, "seed=7").refuses("seed=7: ", "has 0, which a resume must keep")
    again = run_dir.with_name("again")
    assert moe_train("fork", str(new), str(again)).code == 0
    assert "from step 2" in moe_train("run", str(again / "recipe.yaml"), "--run-dir", str(again)).output


def test_a_linked_empty_folder_is_filled_where_it_leads_to(moe_train: Command, run_dir: Path) -> None:
    forked(run_dir).mkdir()
    link = run_dir.with_name("link")
    link.symlink_to("new")
    assert moe_train("fork", str(run_dir), str(link)).code == 0
    assert link.is_symlink()
    assert (forked(run_dir) / "run.json").exists()


@pytest.mark.parametrize(
    ("words", "parts", "code"),
    [
        (["{run}", "{run}"], ["NEW={run}: exists already", "name a new or an empty folder"], 2),
        (["{run}", "{run}/inside"], ["NEW={run}/inside: must not be inside {run}"], 2),
        (["{run}", "{run}/recipe.yaml"], ["NEW={run}/recipe.yaml: exists already"], 2),
        (["{run}", "{run}/../new", "--step", "5"], ["--step 5: ", "choose one of steps 2, 4, 6"], 2),
        (["{run}", "{run}/../new", "--step", "x"], ["--step: x is not a whole number"], 2),
        (["{run}", "{run}/../new", "--ste", "4"], ["unrecognized arguments: --ste"], 2),
        (["{run}", ""], ["NEW: must not be empty"], 2),
        (["nothing", "{run}/../new"], ["RUN=nothing: there is no run folder"], 2),
        (
            ["{run}", "small.yaml/new"],
            ["NEW=small.yaml/new: ", "small.yaml is a file, not a folder; choose another NEW"],
            1,
        ),
        (
            ["{run}", "/proc/nowhere/new"],
            ["NEW=/proc/nowhere/new: cannot be written", "choose another NEW"],
            1,
        ),
        (["{run}", "{run}/../parent/dead/new"], ["dead is a link to /nonexistent, which is not there"], 1),
    ],
)
def test_what_cannot_be_forked_is_refused_and_nothing_is_left(
    moe_train: Command, run_dir: Path, words: list[str], parts: list[str], code: int
) -> None:
    run_dir.with_name("parent").mkdir()
    (run_dir.with_name("parent") / "dead").symlink_to("/nonexistent")
    before = tree(run_dir.parent)
    ended = moe_train("fork", *(word.format(run=run_dir) for word in words))
    ended.refuses(*(part.format(run=run_dir) for part in parts), code=code)
    assert tree(run_dir.parent) == before


@pytest.mark.parametrize("harm", ["none", "bad"])
def test_a_run_without_a_good_checkpoint_is_not_forked(moe_train: Command, run_dir: Path, harm: str) -> None:
    if harm == "none":
        shutil.rmtree(run_dir / "checkpoints")
    for file in (run_dir / "checkpoints").glob("step*/*.safetensors"):
        file.write_bytes(b"")
    before = tree(run_dir.parent)
    ended = moe_train("fork", str(run_dir), str(forked(run_dir)))
    part, code = ("has no checkpoint to fork from", 2) if harm == "none" else ("step_00000002: is invalid", 1)
    assert ended.code == code
    assert part in ended.errors.splitlines()[-1]
    assert tree(run_dir.parent) == before


def test_a_fork_and_a_copy_do_not_write_to_the_other_runs_page_at_wandb(
    moe_train: Command, run_dir: Path
) -> None:
    def wandb_id(folder: Path) -> str:
        return str(read_manifest(folder / "checkpoints/step_00000008").meta["callbacks"]["wandb"]["run_id"])

    new, copy = forked(run_dir), run_dir.with_name("copy")
    assert moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8").code == 0
    assert moe_train("fork", str(run_dir), str(new), "--step", "4").code == 0
    shutil.copytree(run_dir, copy)
    (copy / "finished.json").unlink()
    shutil.rmtree(copy / "checkpoints/step_00000008")
    for folder in (new, copy):
        assert moe_train("run", "small.yaml", "--run-dir", str(folder), "steps=8").code == 0
    assert len({wandb_id(folder) for folder in (run_dir, new, copy)}) == 3
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["event"] == "finished"
    identity = read_identity(copy)
    assert identity is not None
    assert identity.parent == str(run_dir)
