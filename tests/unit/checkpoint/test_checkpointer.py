"""Saving, choosing and loading as the training loop does it, on ranks that are threads."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from checkpoint_states import emptied, equal, state, whole
from own_processes import wait_for
from safetensors.torch import load_file
from threaded_ranks import one_rank, run_ranks

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.layout import Shard, boxes_of
from moe_train.checkpoint.lineage import record_start
from moe_train.checkpoint.verify import verify
from moe_train.config.schema import CheckpointConfig
from moe_train.errors import CheckpointError

SYNCHRONOUS = CheckpointConfig(asynchronous=False, keep_last=0)
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (4, 1)]


def save(
    run_dir: Path, step: int, size: int = 1, expert: int = 1, seed: int = 0, attempt: int = 1, **options
):
    """Save `state(seed)` on `size` ranks; what each rank returned or raised."""

    def rank_main(world):
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, world, **options)
        checkpointer.save(step, state(world.rank, size, expert, seed), {"tokens": step * 10})
        return checkpointer.poll()

    return run_ranks(size, rank_main, attempt)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    record_start(tmp_path, 1, None)
    return tmp_path


@pytest.mark.parametrize("written", LAYOUTS)
@pytest.mark.parametrize("read", LAYOUTS)
def test_any_layout_reads_what_any_other_wrote(run_dir, written, read):
    assert save(run_dir, 7, *written) == [[7]] * written[0]

    def load(world):
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, world)
        expected = state(world.rank, *read)
        target = emptied(expected)
        meta = checkpointer.load(checkpointer.choose("latest"), target)
        return meta == {"tokens": 70, "step": 7} and equal(target, expected)

    assert run_ranks(read[0], load, attempt=2) == [True] * read[0]


def test_files_can_be_read_by_any_safetensors_reader(run_dir):
    save(run_dir, 1, size=2, expert=2)
    folder = run_dir / "checkpoints" / "step_00000001"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]
    second = load_file(folder / "rank-00001.safetensors")
    assert torch.equal(second["experts.up"], whole("experts.up")[2:4])
    assert "step" not in second  # whole on every rank: rank 0 writes it
    assert (run_dir / "checkpoints" / "latest").read_text() == "step_00000001\n"


def test_files_are_split_above_the_limit(run_dir):
    save(run_dir, 1, max_file_bytes=250)
    folder = run_dir / "checkpoints" / "step_00000001"
    sizes = {path.name: len(load_file(path)) for path in folder.glob("*.safetensors")}
    assert sizes == {
        "rank-00000.safetensors": 1,
        "rank-00000-001.safetensors": 1,
        "rank-00000-002.safetensors": 3,
    }
    assert verify(folder) == []


def test_an_asynchronous_save_holds_the_values_of_its_step(run_dir):
    checkpointer = Checkpointer(run_dir, CheckpointConfig(asynchronous=True), one_rank())
    live, meta = state(0, 1, 1), {"rows": [1]}
    for step in (1, 2):
        checkpointer.save(step, live, meta)
        for _, shard in boxes_of(live):
            shard.data.fill_(step)
        meta["rows"].append(99)
    checkpointer.wait()
    assert checkpointer.poll() == [1, 2]
    assert checkpointer.poll() == []

    target = emptied(live)
    reader = Checkpointer(run_dir, SYNCHRONOUS, one_rank(attempt=2))
    assert reader.load(reader.choose(1), target)["rows"] == [1]
    assert equal(target, state(0, 1, 1))
    reader.load(reader.choose(2), target)
    assert target["counts"][0].data.tolist() == [1] * 6


def test_a_failed_background_save_is_raised_by_the_next_call(run_dir, monkeypatch):
    monkeypatch.setattr(
        "moe_train.checkpoint.save.write_shard_file",
        lambda path, tensors: (_ for _ in ()).throw(OSError(5, "Input/output error", str(path))),
    )
    checkpointer = Checkpointer(run_dir, CheckpointConfig(asynchronous=True), one_rank())
    checkpointer.save(1, state(0, 1, 1), {})
    with pytest.raises(
        CheckpointError, match=r"rank-00000.safetensors: Input/output error while saving step 1"
    ):
        checkpointer.wait()
    assert checkpointer.poll() == []
    assert list((run_dir / "checkpoints").iterdir()) == []


def test_a_rank_that_fails_makes_all_ranks_fail_with_its_reason(run_dir, monkeypatch):
    from moe_train.checkpoint import save as saving

    write = saving.write_shard_file

    failures = [OSError(28, "No space left on device", "rank-00001.safetensors")]

    def fail_once_on_rank_one(path, tensors):
        if path.name.startswith("rank-00001") and failures:
            raise failures.pop()
        return write(path, tensors)

    monkeypatch.setattr(saving, "write_shard_file", fail_once_on_rank_one)

    def save_twice(world):
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, world)
        with pytest.raises(CheckpointError) as caught:
            checkpointer.save(1, state(world.rank, 3, 1), {})
        world.barrier()
        checkpointer.save(1, state(world.rank, 3, 1), {})  # what the first try left does not count
        return str(caught.value)

    for message in run_ranks(3, save_twice):
        assert "the disk is full" in message, message
        assert "bytes free" in message, message
    assert [path.name for path in (run_dir / "checkpoints").glob("step*")] == ["step_00000001"]
    assert verify(run_dir / "checkpoints" / "step_00000001") == []


def test_a_rank_that_is_held_up_after_its_report_finds_its_checkpoint_committed(run_dir, monkeypatch):
    replace, committed = os.replace, run_dir / "checkpoints/step_00000001"

    def replace_and_sleep(source, target):
        replace(source, target)
        if Path(target).name == "rank-00001.json":
            wait_for(committed.exists)

    monkeypatch.setattr(os, "replace", replace_and_sleep)
    assert save(run_dir, 1, size=2) == [[1], [1]]
    assert verify(committed) == []


def test_a_rank_that_never_reports_is_named(run_dir):
    def rank_main(world):
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, world, timeout_s=0.3)
        if world.rank != 1:
            checkpointer.save(1, state(world.rank, 3, 1), {})

    results = run_ranks(3, rank_main)
    assert "ranks [1] did not report" in str(results[0])
    assert "ranks [1] did not report" in str(results[2])


def test_experts_numbered_per_rank_are_refused_when_saving(run_dir):
    def rank_main(world):
        data = torch.ones(2, 3)
        renumbered = {"experts": [Shard(data, (4, 3), (0, 0), is_expert=True)]}
        Checkpointer(run_dir, SYNCHRONOUS, world).save(1, renumbered, {})

    for result in run_ranks(2, rank_main):
        assert isinstance(result, CheckpointError)
        assert "experts has elements that are written twice" in str(result)
    assert list((run_dir / "checkpoints").glob("step_00000001*")) == [
        run_dir / "checkpoints" / "step_00000001.failed-1"
    ]


def test_a_rank_that_loads_another_ranks_experts_is_found(run_dir, monkeypatch):
    save(run_dir, 1, size=2, expert=2)

    def load_exchanged(world):
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, world)
        found, target = checkpointer.choose(1), emptied(state(world.rank, 2, 2))
        real = __import__("moe_train.checkpoint.load", fromlist=["fill"]).fill

        def fill_and_exchange(path, manifest, wanted):
            problem = real(path, manifest, wanted)
            experts = wanted["experts.up"][0].data
            experts.copy_(experts.flip(0))
            return problem

        monkeypatch.setattr("moe_train.checkpoint.checkpointer.fill", fill_and_exchange)
        world.barrier()
        checkpointer.load(found, target)

    for result in run_ranks(2, load_exchanged, attempt=2):
        assert isinstance(result, CheckpointError)
        assert "4 experts differ from those saved under their ids, first expert 0 of experts.up" in str(
            result
        )


def test_a_checkpoint_of_another_model_names_keys_and_both_shapes(run_dir):
    save(run_dir, 1)
    reader = Checkpointer(run_dir, SYNCHRONOUS, one_rank(attempt=2))
    target = dict(state(0, 1, 1))
    target["dense.weight"] = [Shard(torch.zeros(9, 3, dtype=torch.bfloat16), (9, 3), (0, 0))]
    target["bias"] = [Shard(torch.zeros(2), (2,), (0,))]
    del target["counts"]
    with pytest.raises(CheckpointError, match="another model") as caught:
        reader.load(reader.choose("latest"), target)
    message = str(caught.value)
    assert "dense.weight: is bfloat16 [7, 3] in the checkpoint and bfloat16 [9, 3] in the model" in message
    assert "bias: is float32 [2] in the model and not in the checkpoint" in message
    assert "counts: is int64 [6] in the checkpoint and not in the model" in message


def test_the_newest_good_one_is_chosen_and_the_bad_one_is_named(run_dir, caplog):
    for step in (1, 2, 3):
        save(run_dir, step, seed=step)
    victim = run_dir / "checkpoints" / "step_00000003" / "rank-00000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    reader = Checkpointer(run_dir, SYNCHRONOUS, one_rank(attempt=2))
    with caplog.at_level(logging.WARNING):
        found = reader.choose("latest")
    assert found.step == 2
    assert f"{victim}: has " in caplog.text
    with pytest.raises(CheckpointError, match="is bad"):
        reader.choose(3)
    with pytest.raises(CheckpointError, match=r"step_00000009: does not exist; choose one of \[1, 2, 3\]"):
        reader.choose(9)


def test_a_run_whose_checkpoints_are_all_bad_is_not_started_anew(run_dir):
    reader = Checkpointer(run_dir, SYNCHRONOUS, one_rank(attempt=2))
    assert reader.choose("latest") is None
    for step in (1, 2):
        save(run_dir, step)
        (run_dir / "checkpoints" / f"step_{step:08d}" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is good"):
        reader.choose("latest")


def test_saving_a_step_again_is_idle(run_dir):
    checkpointer = Checkpointer(run_dir, SYNCHRONOUS, one_rank())
    checkpointer.save(1, state(0, 1, 1), {})
    before = (run_dir / "checkpoints" / "step_00000001" / "manifest.json").stat().st_ino
    checkpointer.save(1, state(0, 1, 1), {})
    assert (run_dir / "checkpoints" / "step_00000001" / "manifest.json").stat().st_ino == before
    assert checkpointer.poll() == [1]


def test_meta_must_be_json(run_dir):
    checkpointer = Checkpointer(run_dir, SYNCHRONOUS, one_rank())
    with pytest.raises(CheckpointError, match="meta is not JSON-ready"):
        checkpointer.save(1, state(0, 1, 1), {"loss": float("nan")})


def test_the_manifest_says_what_is_where(run_dir):
    save(run_dir, 1, size=2, expert=2)
    manifest = json.loads((run_dir / "checkpoints" / "step_00000001" / "manifest.json").read_text())
    assert (manifest["step"], manifest["attempt"], manifest["workers"]) == (1, 1, 2)
    assert manifest["tensors"]["experts.up"]["boxes"] == [
        {"file": "rank-00000.safetensors", "offsets": [0, 0, 0], "shape": [2, 5, 3]},
        {"file": "rank-00001.safetensors", "offsets": [2, 0, 0], "shape": [2, 5, 3]},
    ]
    assert len(manifest["tensors"]["experts.up"]["expert_checksums"]) == 4
    assert manifest["tensors"]["dense.weight"]["dtype"] == "bfloat16"
