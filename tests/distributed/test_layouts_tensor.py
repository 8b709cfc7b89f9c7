"""Models train on tensor groups like one process: every position, head and stack, with and without sequence cuts.

A rank holds some heads, hidden units and tokens of the vocabulary; 2 does not divide 301 tokens, so there is padding.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import run_workers
from layout_run import LayoutRun, gathered, tiny_step, train
from test_layouts import assert_same_gradients, assert_same_run, one_process
from test_layouts_adafactor import ADAFACTOR
from test_resharding import ADAMW, STEPS, global_tensors, save_state
from tiny_model import global_batch, share_of

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.parallel.world import World

DENSE = ("moe.every=0", "model.dropout=0.1")
ROTARY = DENSE
UNTIED = (
    *DENSE,
    "model.tied_embeddings=false",
    "model.activation=swiglu",
    "model.positions=relative",
    "data.tokenizer.vocab_size=301",
)
LEARNED = (*DENSE, "model.positions=learned", "model.activation=geglu", "data.tokenizer.vocab_size=301")
TRANSFORMER_XL = (*DENSE, "model.positions=transformer_xl", "model.activation=gelu")
SPANS = (
    *DENSE,
    "model.architecture=encoder_decoder",
    "objective.kind=span_corruption",
    "objective.sentinels=5",
    "model.positions=relative",
    "model.activation=gelu",
)
MASKED = (*DENSE, "model.architecture=encoder", "objective.kind=masked", "model.activation=gelu")
SHARED = (
    "model.dropout=0.1",
    "moe.router.kind=deepseek",
    "moe.shared_experts=1",
    "moe.every=2",
    "model.activation=gelu",
    "moe.activation=gelu",
    "moe.expert_dropout=0.1",
)
FACTORED = ("moe.every=0", "data.tokenizer.vocab_size=301", *ADAFACTOR)

TENSOR = ("parallel.tensor=2",)
SEQUENCE = (*TENSOR, "parallel.sequence=true")
ON_TWO = [(UNTIED, TENSOR), (SPANS, SEQUENCE), (FACTORED, TENSOR)]
ON_FOUR = [
    (TRANSFORMER_XL, TENSOR),
    (SHARED, (*SEQUENCE, "parallel.expert=2")),
    (LEARNED, (*SEQUENCE, "data.micro_batch=2")),
    (FACTORED, SEQUENCE),
]
MOVED = (*UNTIED, *ADAMW)

MODELS = [
    ROTARY,
    UNTIED,
    LEARNED,
    TRANSFORMER_XL,
    SPANS,
    (*SPANS, "model.tied_embeddings=false"),
    MASKED,
    SHARED,
]
LAYOUTS = [
    (2, TENSOR),
    (2, (*SEQUENCE, "data.micro_batch=2")),
    (4, (*TENSOR, "engine.reshard_after_forward=true", "data.micro_batch=1")),
    (4, (*SEQUENCE, "engine.recompute=block")),
    (4, ("parallel.tensor=4", "model.num_heads=4")),
    (4, ("parallel.tensor=4", "parallel.sequence=true", "model.num_heads=4")),
]


def train_all(world: World, cases: list[tuple[tuple[str, ...], ...]]) -> list[LayoutRun]:
    """The runs of several models, each on its layout."""
    return [train(world, *model, *layout) for model, layout in cases]


def train_and_save(world: World, run_dir: Path, *overrides: str) -> None:
    """A few updates, then a checkpoint."""
    recipe, training_step = tiny_step(world, *overrides)
    data = training_step.mesh.data
    for step in range(STEPS):
        training_step.update(share_of(global_batch(recipe, step), data.rank, data.size), step, False)
    save_state(world, run_dir, recipe, training_step)


def train_all_and_save(world: World, cases: list[Any], run_dir: Path) -> list[LayoutRun]:
    """Both, in one process group, since starting one takes seconds."""
    train_and_save(world, run_dir, *MOVED, *TENSOR)
    return train_all(world, cases)


def load_and_save(world: World, run_dir: Path, copy_dir: Path, *overrides: str) -> None:
    """Loads the newest checkpoint of `run_dir` on this layout and writes what arrived to `copy_dir`."""
    recipe, training_step = tiny_step(world, "seed=1", *overrides)
    checkpointer = Checkpointer(run_dir, recipe.checkpoint, replace(world, attempt=2))
    found = checkpointer.choose("latest")
    assert found is not None
    checkpointer.load(found, training_step.engine.state())
    save_state(world, copy_dir, recipe, training_step)


def assert_trains_like_one_process(model: tuple[str, ...], runs: list[LayoutRun]) -> None:
    """Adafactor's updates are compared too, since it sums over rows and columns that are cut."""
    expected = one_process(model)
    assert_same_gradients(expected, runs, digits=1e-5)
    assert_same_run(expected, runs, digits=2e-6 if model != FACTORED else 1e-5)
    if model == FACTORED:
        whole = gathered([expected.parameters])
        for name, value in gathered([run.parameters for run in runs]).items():
            assert (value - whole[name]).abs().max() < 1e-4 * whole[name].abs().max(), name


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> tuple[list[list[LayoutRun]], Path]:
    """What two workers of one tensor group trained, and the folder of their checkpoint."""
    run_dir = tmp_path_factory.mktemp("tensor")
    return run_workers(2, train_all_and_save, ON_TWO, run_dir), run_dir


def test_a_tensor_group_trains_like_one_process(on_two):
    for index, (model, _) in enumerate(ON_TWO):
        assert_trains_like_one_process(model, [runs[index] for runs in on_two[0]])


def test_two_tensor_groups_train_like_one_process():
    of_ranks = run_workers(4, train_all, ON_FOUR)
    for index, (model, _) in enumerate(ON_FOUR):
        assert_trains_like_one_process(model, [runs[index] for runs in of_ranks])


def test_a_checkpoint_moves_to_one_worker_and_back_to_the_bit(on_two, tmp_path):
    load_and_save(World(0, 1, 0, 1, torch.device("cpu")), on_two[1], tmp_path / "one", *MOVED)
    run_workers(2, load_and_save, tmp_path / "one", tmp_path / "two", *MOVED, *SEQUENCE)
    saved = global_tensors(on_two[1])
    for folder in ("one", "two"):
        moved = global_tensors(tmp_path / folder)
        assert moved.keys() == saved.keys()
        for name, value in saved.items():
            assert torch.equal(moved[name], value), name
    assert saved["model.embedding.weight"].shape == (301, 32)
    assert all(value.abs().max() > 0 for name, value in saved.items() if name.startswith("optim.exp_avg."))


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), LAYOUTS)
@pytest.mark.parametrize("model", [*MODELS, FACTORED], ids=" ".join)
def test_every_model_trains_the_same_on_every_tensor_layout(model, workers, layout):
    heads = tuple(each for each in layout if each.startswith("model."))
    runs = run_workers(workers, train, *model, *layout)
    assert_same_gradients(one_process((*model, *heads)), runs, digits=1e-5)
    assert_same_run(one_process((*model, *heads)), runs, digits=1e-5 if model == FACTORED else 2e-6)


@pytest.mark.distributed_exhaustive
def test_bf16_on_a_tensor_group_begins_with_the_loss_of_one_process():
    runs = run_workers(2, train, *DENSE, "precision=bf16", *TENSOR)
    assert runs[0].losses[0] == pytest.approx(one_process((*DENSE, "precision=bf16")).losses[0], rel=2e-5)
