"""What one layout wrote, read by any other: cut in several dimensions, flattened, and held by several ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from box_layouts import (
    LAYOUTS,
    SHAPES,
    TENSOR_DIM,
    flattened_on_four,
    tensor_and_experts_on_four,
    whole,
    whole_on_one,
)
from checkpoint_states import emptied, equal
from safetensors.torch import load_file
from threaded_ranks import run_ranks

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.layout import boxes_of
from moe_train.checkpoint.lineage import record_start
from moe_train.checkpoint.verify import verify
from moe_train.config.schema import CheckpointConfig
from moe_train.errors import CheckpointError

SYNCHRONOUS = CheckpointConfig(asynchronous=False)


def save(run_dir: Path, layout, size: int, config=SYNCHRONOUS) -> list:
    record_start(run_dir, 1, None)

    def save_rank(world):
        checkpointer = Checkpointer(run_dir, config, world)
        state = layout(world.rank)
        checkpointer.save(1, state, {})
        for _, shard in boxes_of(state):
            shard.data.fill_(7)  # training continues
        checkpointer.wait()
        return checkpointer.poll()

    return run_ranks(size, save_rank)


@pytest.mark.parametrize("written", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout_reads_what_any_other_wrote(tmp_path, written):
    config = CheckpointConfig(asynchronous=True)
    assert save(tmp_path, written, LAYOUTS[written], config) == [[1]] * LAYOUTS[written]
    assert verify(tmp_path / "checkpoints/step_00000001") == []
    for layout, size in LAYOUTS.items():

        def load(world, layout=layout):
            expected = layout(world.rank)
            target = emptied(expected)
            checkpointer = Checkpointer(tmp_path, SYNCHRONOUS, world)
            checkpointer.load(checkpointer.choose("latest"), target)
            return equal(target, expected)

        assert run_ranks(size, load, attempt=2) == [True] * size, layout.__name__


def test_every_slice_of_every_expert_is_saved(tmp_path):
    """NVIDIA/Megatron-LM#1836: only the first slice was, and the file had 1 / expert_tensor of its size."""
    save(tmp_path, tensor_and_experts_on_four, 4)
    folder = tmp_path / "checkpoints/step_00000001"
    written = [load_file(path) for path in folder.glob("*.safetensors")]
    for name in SHAPES:
        assert sum(file[name].numel() for file in written if name in file) == whole(name).numel(), name

    def without_second_slices(rank):
        state = tensor_and_experts_on_four(rank)
        return {
            name: [replace(shard, is_owner=rank % 2 == 0 or not shard.is_expert) for shard in shards]
            for name, shards in state.items()
        }

    for result in save(tmp_path / "other", without_second_slices, 4):
        assert isinstance(result, CheckpointError)
        assert "experts.up has 60 of 120 elements that no rank writes" in str(result)
    assert TENSOR_DIM["experts.up"] == 2


def test_several_boxes_of_one_rank_are_numbered_in_its_file(tmp_path):
    save(tmp_path, flattened_on_four, 4)
    folder = tmp_path / "checkpoints/step_00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "moe-train-checkpoint-2"
    for name, entry in manifest["tensors"].items():
        assembled = torch.full(SHAPES[name], torch.nan)
        for box in entry["boxes"]:
            stored = f"{name}#{box['part']}" if "part" in box else name
            place = tuple(slice(at, at + n) for at, n in zip(box["offsets"], box["shape"], strict=True))
            assembled[place] = load_file(folder / box["file"])[stored]
        assert torch.equal(assembled, whole(name)), name
    assert max(box.get("part", 0) for box in manifest["tensors"]["experts.up"]["boxes"]) == 2


def test_one_box_of_a_tensor_a_rank_is_written_as_ever(tmp_path):
    """Older versions read it, and what they wrote reads the same."""
    save(tmp_path, whole_on_one, 1)
    manifest = json.loads((tmp_path / "checkpoints/step_00000001/manifest.json").read_text())
    assert manifest["format"] == "moe-train-checkpoint-1"
    assert manifest["tensors"]["norm"] == {
        "boxes": [{"file": "rank-00000.safetensors", "offsets": [0], "shape": [5]}],
        "dtype": "float32",
        "expert_checksums": None,
        "shape": [5],
    }
