"""FSDP2 in groups, offloaded, in bf16, with gradients reduced early: each trains like one process."""

import pytest
import torch
from gloo_workers import run_workers
from layout_run import LayoutRun, gathered, train
from test_layouts import RANDOM, assert_same_gradients, assert_same_run, one_process
from test_layouts_recompute import assert_same_numbers

from moe_train.parallel.world import World

EACH_MICROBATCH = ("data.micro_batch=1", "engine.reduce_each_microbatch=true")
LAYOUTS = [
    ("parallel.shard=2", "parallel.expert=2", "engine.reshard_after_forward=true", *EACH_MICROBATCH),
    # Every expert is whole on one worker, which has no copy of it; the rest is whole on every worker.
    ("parallel.shard=1", "parallel.expert=4", "data.micro_batch=1"),
    # FSDP2 offloads experts without replicas too.
    ("engine.offload=true", "parallel.shard=2", "parallel.expert=4", "moe.dispatch.kind=all_to_all"),
]
MORE_LAYOUTS = [
    (4, ("parallel.shard=1", "parallel.expert=1")),
    (4, ("parallel.shard=1", "parallel.expert=2", *EACH_MICROBATCH)),
    (4, ("parallel.shard=2", "parallel.expert=1", "engine.offload=true", *EACH_MICROBATCH)),
    (4, ("parallel.shard=2", "parallel.expert=1", "engine.recompute=block", "data.micro_batch=1")),
    (4, ("parallel.shard=4", "parallel.expert=2", *EACH_MICROBATCH)),
    (2, ("parallel.expert=2", "engine.offload=true", *EACH_MICROBATCH)),
    (8, ("parallel.shard=4", "parallel.expert=2", "engine.reshard_after_forward=true")),
    (8, ("parallel.shard=2", "parallel.expert=4")),
]
BF16 = ("precision=bf16", "model.activation=gelu", "optim.lr=0.1", "parallel.expert=2", "data.micro_batch=2")
ADAFACTOR = ("optim.kind=adafactor", "optim.lr=0.01", "optim.factor_from=8", "model.dropout=0.1")


def trained_on_each(world: World, layouts: list[tuple[str, ...]]) -> list[LayoutRun]:
    """A run on each layout, one after the other."""
    return [train(world, *layout) for layout in layouts]


def test_groups_that_shard_train_like_one_process():
    of_ranks = run_workers(4, trained_on_each, [(*RANDOM, *layout) for layout in LAYOUTS])
    for runs in zip(*of_ranks, strict=True):
        assert_same_gradients(one_process(RANDOM), list(runs), digits=1e-5)
        assert_same_run(one_process(RANDOM), list(runs), digits=2e-6)
    first, _, offloaded = of_ranks[0]
    shared = first.parameters["layers.0.attention.query.weight"]
    assert shared.data.numel() == shared.global_shape[0] * shared.global_shape[1] / 2
    expert = offloaded.parameters["layers.0.feedforward.experts.w_in"]
    assert expert.data.numel() == torch.Size(expert.global_shape).numel() / 4


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), MORE_LAYOUTS)
def test_every_way_to_shard_trains_like_one_process(workers, layout):
    runs = run_workers(workers, train, *RANDOM, *layout)
    assert_same_gradients(one_process(RANDOM), runs, digits=1e-5)
    assert_same_run(one_process(RANDOM), runs, digits=2e-6)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_adafactor_sums_over_the_groups_that_shard(layout):
    runs = run_workers(4, train, *ADAFACTOR, *layout)
    assert_same_gradients(one_process(ADAFACTOR), runs, digits=1e-5)
    assert_same_run(one_process(ADAFACTOR), runs, digits=1e-5)


def test_gathering_in_bf16_changes_no_number_and_reducing_in_bf16_only_rounds():
    of_model = ("model.num_layers=3", "moe.every=2", "moe.shared_experts=1", *BF16)
    ways = (
        (),
        ("engine.gather_dtype=bf16", "engine.recompute=block"),
        ("engine.reduce_dtype=bf16", "engine.gather_dtype=bf16"),
    )
    of_ranks = run_workers(4, trained_on_each, [(*of_model, *way) for way in ways])
    for runs in of_ranks:
        assert_same_numbers(list(runs[:2]))
    plain, _, reduced = ([runs[way] for runs in of_ranks] for way in range(3))
    rounded = gathered([run.gradients for run in reduced])
    for name, gradient in gathered([run.gradients for run in plain]).items():
        error = (rounded[name] - gradient).abs().max() / gradient.abs().max()
        # bf16 rounds by 2^-9; the gradients of four ranks are rounded, and may be larger than their sum.
        assert 0 < error < 2**-6, name
    assert reduced[0].losses == pytest.approx(plain[0].losses, rel=2e-3)
    expected = one_process(tuple(each for each in of_model if not each.startswith("parallel")))
    assert_same_gradients(expected, [runs[1] for runs in of_ranks], digits=0.05)
    assert of_ranks[0][1].losses == pytest.approx(expected.losses, rel=2e-3)


@pytest.mark.distributed_exhaustive
def test_tensor_groups_shard_and_run_again_as_others_do():
    tensor, folded = "parallel.tensor=2", "parallel.expert=4"
    ways = [
        ("parallel.shard=1", "parallel.expert=2", "engine.recompute=block", *EACH_MICROBATCH),
        (folded, "engine.offload=true", "engine.reshard_after_forward=true", "engine.recompute=attention"),
        (folded, "parallel.sequence=true", "engine.recompute=block", "moe.dispatch.kind=all_to_all"),
    ]
    bf16 = ("precision=bf16", "model.activation=gelu", "optim.lr=0.1", "parallel.expert=2")
    gathered_in_bf16 = (*bf16, "engine.gather_dtype=bf16", "engine.recompute=block")
    layouts = [(*RANDOM, tensor, *way) for way in (*ways, bf16, gathered_in_bf16)]
    of_ranks = run_workers(4, trained_on_each, layouts)
    for runs in list(zip(*of_ranks, strict=True))[: len(ways)]:
        assert_same_gradients(one_process(RANDOM), list(runs), digits=1e-5)
        assert_same_run(one_process(RANDOM), list(runs), digits=2e-6)
    for runs in of_ranks:
        assert_same_numbers(runs[len(ways) :])
