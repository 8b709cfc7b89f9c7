"""Saved with the experts on four workers, loaded on any other layout: every parameter and moment bit-equal."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gloo_workers import run_workers
from layout_run import tiny_step
from safetensors.torch import load_file
from threaded_ranks import one_rank
from tiny_model import global_batch, share_of
from torch import Tensor

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.lineage import record_start
from moe_train.checkpoint.manifest import read_manifest, stored_name
from moe_train.errors import CheckpointError
from moe_train.parallel.world import World

STEPS = 3
PYRAMID = ("moe.num_experts=[4,8]",)
ADAMW = ("optim.kind=adamw", "optim.lr=1e-2")


def train_and_save(world: World, run_dir: Path, *degrees: str) -> None:
    """A few updates with AdamW, then a checkpoint; layers have 4 and 8 experts."""
    recipe, training_step = tiny_step(world, *degrees, *PYRAMID, *ADAMW)
    data = training_step.mesh.data
    for step in range(STEPS):
        training_step.update(
            share_of(global_batch(recipe, step), data.rank, data.size), step, stop_requested=False
        )
    save_state(world, run_dir, recipe, training_step)


def load_and_save(world: World, run_dir: Path, copy_dir: Path, expert: int, *more: str) -> None:
    """Load the newest checkpoint of `run_dir` on this layout and write what arrived to `copy_dir`."""
    recipe, training_step = tiny_step(world, f"parallel.expert={expert}", "seed=1", *PYRAMID, *ADAMW, *more)
    later = replace(world, attempt=2)
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, later)
    found = checkpointer.choose("latest")
    assert found is not None
    assert checkpointer.load(found, training_step.engine.state())["step"] == STEPS
    save_state(world, copy_dir, recipe, training_step)


def save_state(world, run_dir, recipe, training_step) -> None:
    """Write the checkpoint of step 3 of a run that begins with this attempt."""
    if world.is_main:
        record_start(run_dir, world.attempt, None)
    world.barrier()
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, world)
    checkpointer.save(STEPS, training_step.engine.state(), {})
    checkpointer.wait()


def global_tensors(run_dir: Path, step: int = STEPS) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, put together from its boxes."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    manifest = read_manifest(folder)
    files = {name: load_file(folder / name) for name in manifest.files}
    whole = {}
    for name, entry in manifest.tensors.items():
        value = torch.full(entry.shape, torch.nan)  # what no box covers stays NaN
        for box in entry.boxes:
            place = tuple(
                slice(start, start + size) for start, size in zip(box.offsets, box.shape, strict=True)
            )
            value[place] = files[box.file][stored_name(name, box.part)]
        whole[name] = value
    return whole


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with a checkpoint written by four workers that shard four experts and eight."""
    run_dir = tmp_path_factory.mktemp("saved")
    run_workers(4, train_and_save, run_dir, "parallel.expert=4")
    return run_dir


LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]
FAST = [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("workers", "expert"),
    [pytest.param(*at, marks=[] if at in FAST else pytest.mark.distributed_exhaustive) for at in LAYOUTS],
)
def test_parameters_and_moments_are_bit_equal_on_another_layout(saved, tmp_path, workers, expert):
    run_workers(workers, load_and_save, saved, tmp_path, expert)
    before, after = global_tensors(saved), global_tensors(tmp_path)
    assert after.keys() == before.keys()
    assert {name.split(".")[1] for name in after if name.startswith("optim.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert not value.isnan().any(), name
        if "optim.exp_avg" in name:
            assert value.abs().max() > 0, name


CUT = [
    (2, ("parallel.expert_tensor=2",), (4, 32, 20)),
    (2, ("parallel.tensor=2", "parallel.expert=2"), (2, 32, 40)),
    (4, ("parallel.expert=2", "parallel.expert_tensor=2"), (2, 32, 20)),
    (4, ("parallel.tensor=2", "parallel.expert=2"), (2, 16, 40)),
    (4, ("parallel.tensor=2", "parallel.expert=2", "parallel.expert_tensor=2"), (2, 32, 20)),
]
FAST_CUTS = CUT[:2]


@pytest.mark.parametrize(
    ("workers", "degrees", "box"),
    [pytest.param(*at, marks=[] if at in FAST_CUTS else pytest.mark.distributed_exhaustive) for at in CUT],
)
def test_slices_of_layers_and_experts_are_all_saved_and_read_whole(tmp_path, workers, degrees, box):
    """NVIDIA/Megatron-LM#1836: only the first slice was saved, and the file had 1 / expert_tensor of its size."""
    run_workers(workers, train_and_save, tmp_path / "sliced", *degrees)
    load_and_save(one_rank(attempt=2), tmp_path / "sliced", tmp_path / "whole", 1)
    sliced, whole = global_tensors(tmp_path / "sliced"), global_tensors(tmp_path / "whole")
    assert sliced.keys() == whole.keys()
    for name, value in sliced.items():
        assert torch.equal(whole[name], value), name
        assert not value.isnan().any(), name
    manifest = read_manifest(tmp_path / "sliced/checkpoints/step_00000003")
    boxes = manifest.tensors["model.layers.0.feedforward.experts.w_in"].boxes
    assert [written.shape for written in boxes] == [box] * workers


ODD = ("data.tokenizer.vocab_size=301", "model.tied_embeddings=false")
TENSOR = ("parallel.tensor=2", *ODD)


def cut_to_cut(world: World, whole: Path, again: Path, cut: Path) -> str:
    """Loads `whole` on a tensor group and saves it in `again`, trains there into `cut`; says why `cut` is refused."""
    load_and_save(world, whole, again, 1, *TENSOR)
    train_and_save(world, cut, *TENSOR)
    # As many rows in memory as 301 tokens have with padding, but another model.
    with pytest.raises(CheckpointError) as refused:
        load_and_save(world, cut, cut, 1, *TENSOR, "data.tokenizer.vocab_size=302")
    return str(refused.value)


def test_a_checkpoint_with_another_padding_of_the_vocabulary_loads(tmp_path):
    whole, again, cut, alone = (tmp_path / name for name in ("whole", "again", "cut", "alone"))
    train_and_save(one_rank(), whole, *ODD)
    reasons = run_workers(2, cut_to_cut, whole, again, cut)
    load_and_save(one_rank(attempt=2), cut, alone, 1, *ODD)
    for before, after in ((whole, again), (cut, alone)):
        expected, loaded = global_tensors(before), global_tensors(after)
        assert expected.keys() == loaded.keys()
        for name, value in expected.items():
            assert torch.equal(loaded[name], value), name
        for name in ("model.embedding.weight", "model.head.weight"):
            assert expected[name].shape == (301, 32)
            moments = expected[name.replace("model.", "optim.exp_avg_sq.")]
            assert moments.shape == (301, 32)
            assert moments.max() > 0
    assert len(set(reasons)) == 1
    assert (
        "embedding.weight: is float32 [301, 32] in the checkpoint and float32 [302, 32] in the model"
        in reasons[0]
    )


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(
    ("workers", "tensor", "expert", "expert_tensor"),
    [(2, 2, 2, 1), (2, 2, 1, 2), (4, 2, 4, 1), (4, 2, 2, 2), (4, 2, 1, 2)],
)
def test_experts_spread_over_tensor_ranks_and_cut_come_back(
    saved, tmp_path, workers, tensor, expert, expert_tensor
):
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    degrees = (f"parallel.tensor={tensor}", f"parallel.expert_tensor={expert_tensor}")
    run_workers(workers, load_and_save, saved, spread, expert, *degrees)
    run_workers(1, load_and_save, spread, alone, 1)
    before, between, after = global_tensors(saved), global_tensors(spread), global_tensors(alone)
    assert before.keys() == between.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(between[name], value), name
        assert torch.equal(after[name], value), name
