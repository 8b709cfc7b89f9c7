"""Checkpoints that were harmed, or are not this run's: named and passed over, or refused; nothing good is lost.

From outside, through the command line; tests/faults does the same harm at random, a hundred times.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import Command, contents, last_validation


def shard(checkpoint: Path) -> Path:
    """The file of rank 0's tensors."""
    return checkpoint / "rank-00000.safetensors"


def truncate(checkpoint: Path) -> None:
    shard(checkpoint).write_bytes(shard(checkpoint).read_bytes()[:-100])


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray(shard(checkpoint).read_bytes())
    content[len(content) // 2] ^= 1
    shard(checkpoint).write_bytes(content)


def remove_a_shard(checkpoint: Path) -> None:
    shard(checkpoint).unlink()


def cut_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_bytes(path.read_bytes()[:-200])


def swap_with_the_one_before(checkpoint: Path) -> None:
    shutil.copy(shard(checkpoint.with_name("step_00000004")), shard(checkpoint))


HARM = {
    truncate: "bytes, the manifest says",
    flip_a_bit: "has sha256",
    remove_a_shard: "is missing",
    cut_the_manifest: "manifest.json",
    swap_with_the_one_before: "has sha256",
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_a_bad_checkpoint_is_named_and_passed_over(
    moe_train: Command, run_dir: Path, straight: float, harm: Callable[[Path], None]
) -> None:
    harm(run_dir / "checkpoints/step_00000006")
    wanted = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8", "--resume", "6")
    wanted.refuses("step_00000006: is bad (", HARM[harm], "choose another step with --resume", code=1)
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8")
    assert ended.code == 0
    assert "step_00000006 is bad, so it is skipped: " in ended.errors
    assert HARM[harm] in ended.errors
    assert "from step 4" in ended.output
    assert last_validation(run_dir) == straight


def test_a_run_whose_checkpoints_are_all_bad_is_refused(moe_train: Command, run_dir: Path) -> None:
    for checkpoint in (run_dir / "checkpoints").glob("step_*"):
        flip_a_bit(checkpoint)
    before = contents(run_dir / "checkpoints")
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8")
    ended.refuses("none of 3 checkpoints is good", "restore one from a copy", "--resume never", code=1)
    assert contents(run_dir / "checkpoints") == before


def test_a_half_written_checkpoint_is_no_checkpoint(
    moe_train: Command, run_dir: Path, straight: float
) -> None:
    (run_dir / "checkpoints/step_00000006").rename(run_dir / "checkpoints/step_00000006.tmp-1")
    truncate(run_dir / "checkpoints/step_00000006.tmp-1")
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8")
    assert ended.code == 0
    assert "from step 4" in ended.output
    assert last_validation(run_dir) == straight
    assert not list((run_dir / "checkpoints").glob("*.tmp-*"))


def test_a_checkpoint_of_another_run_is_refused(moe_train: Command, run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert moe_train("run", "small.yaml", "--run-dir", str(other), "model.d_model=32").code == 0
    checkpoint = run_dir / "checkpoints/step_00000006"
    shutil.rmtree(checkpoint)
    shutil.copytree(other / "checkpoints/step_00000006", checkpoint)
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8")
    ended.refuses(
        "the checkpoints of steps 6 were not written by any of its attempts", "to another run", "move"
    )
    wanted = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8", "--resume", "6")
    wanted.refuses(
        "--resume 6: ", "newest attempt does not descend from that checkpoint", "choose one of steps 2, 4"
    )


# What is done to a finished run, the words after `moe-train run small.yaml --run-dir RUN`, code, and the message.
REFUSED_RESUMES = [
    (
        "another model",
        ["steps=8", "model.d_model=32"],
        ["model.d_model=32: ", "has 16, which a resume must keep", "--resume never to start afresh"],
    ),
    (
        "another optimizer",
        ["steps=8", "optim.kind=sgd"],
        ["optim.kind=sgd: ", "has adamw, which a resume must keep", "use that value"],
    ),
    (
        "step that is not there",
        ["--resume", "7"],
        ["--resume 7: ", "has no checkpoint of that step; choose one of 2, 4, 6", "--resume auto"],
    ),
]


@pytest.mark.parametrize(
    ("overrides", "parts"), [case[1:] for case in REFUSED_RESUMES], ids=[case[0] for case in REFUSED_RESUMES]
)
def test_what_is_no_resume_is_refused_and_changes_nothing(
    moe_train: Command, run_dir: Path, overrides: list[str], parts: list[str]
) -> None:
    before = contents(run_dir)
    moe_train("run", "small.yaml", "--run-dir", str(run_dir), *overrides).refuses(*parts)
    assert contents(run_dir) == before


def test_a_resume_on_other_text_is_refused_and_leaves_the_run_as_it_was(
    moe_train: Command, run_dir: Path, folder: Path, tmp_path: Path
) -> None:
    before = contents(run_dir)
    other = shutil.copytree(folder / "corpus", tmp_path / "other")
    with (other / "0.txt").open("a") as file:
        file.write(" more")
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8", f"data.corpus.path={other}")
    ended.refuses(
        "data.corpus: the text has changed since this run started", "restore the files", "--resume never"
    )
    assert contents(run_dir) == before


def test_a_resume_says_what_it_changes_and_what_that_makes_of_the_rate(
    moe_train: Command, tmp_path: Path
) -> None:
    command = ["run", "small.yaml", "--run-dir", str(tmp_path), "optim.schedule.kind=cosine"]
    assert moe_train(*command, "steps=2").errors == ""
    longer = moe_train(*command, "steps=4")
    assert longer.code == 0
    steps, rate = longer.errors.splitlines()
    assert steps == "moe-train: steps=4: changed from 2 by this resume"
    # A tenth of the peak at the end of 2 steps; half way to a tenth after 2 of 4.
    assert rate.startswith("moe-train: the learning rate at step 3 is ")
    assert ", 5.5 times as much, not " in rate
    assert "the cosine schedule now ends at step 4, not 2: set optim.schedule.kind=constant" in rate
    constant = moe_train(*command, "steps=5", "optim.schedule.kind=constant").errors
    assert "moe-train: optim.schedule.kind=constant: changed from cosine by this resume\n" in constant
    assert "10 times as much" in constant


def test_a_recipe_that_was_refused_before_the_first_step_binds_nothing(
    moe_train: Command, tmp_path: Path
) -> None:
    command = ["run", "small.yaml", "--run-dir", str(tmp_path), "steps=1"]
    moe_train(*command, "data.tokenizer.vocab_size=4096").refuses("data.tokenizer.vocab_size=4096")
    assert moe_train(*command).code == 0
    moe_train(*command, "data.tokenizer.vocab_size=299").refuses("which a resume must keep")
