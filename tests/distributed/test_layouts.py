"""The layout matrix: every way to share a run out gives the same run.

SGD at a high rate, because AdamW hides errors of scale; jitter, dropout, capacity limit and clipping are on.
Five updates; the gradients of the first one are compared element by element, as the optimizer gets them.
"""

import math
from collections.abc import Collection
from functools import cache

import pytest
import torch
from gloo_workers import run_workers
from layout_run import LayoutRun, gathered, losses_around_a_load, train, train_under_watch

from moe_train.parallel.world import World

DROPOUT = ("model.dropout=0.1",)
JITTER = ("moe.router.jitter=0.1", "moe.router.z_coefficient=0.001")
RANDOM = (*DROPOUT, *JITTER)

HIERARCHICAL = ("moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=2")

EVERY_LAYOUT = [
    (
        workers,
        (
            f"parallel.expert={expert}",
            f"data.micro_batch={8 // workers // accumulation}",
            *reshard,
            *exchange,
        ),
    )
    for workers, expert in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
    for accumulation in (1, 2)
    for reshard in ((), ("engine.reshard_after_forward=true",))
    for exchange in ((), ("moe.dispatch.kind=all_to_all",), HIERARCHICAL)
    if (workers > 1 or not reshard)
    and (expert > 1 or not exchange)
    and (expert > 2 or exchange != HIERARCHICAL)
]
REPRESENTATIVE = pytest.param(4, ("parallel.expert=2", "data.micro_batch=2"), id="representative")
FAST = [
    (2, ("parallel.expert=2", "moe.dispatch.kind=one_sided")),
    (2, ("parallel.expert=2", "moe.dispatch.kind=all_to_all")),
    (4, ("parallel.expert=2", "data.micro_batch=1", "engine.reshard_after_forward=true")),
    (4, ("parallel.expert=4", *HIERARCHICAL)),
]
TRANSFORMER_XL = ("model.positions=transformer_xl", "model.activation=geglu", "moe.activation=gelu", *JITTER)
VARIANTS = [
    (
        "moe.router.kind=top_k",
        "moe.router.k=2",
        "model.activation=swiglu",
        "model.tied_embeddings=false",
        *JITTER,
    ),
    ("model.positions=relative", "model.activation=gelu", "moe.every=2", "moe.capacity_factor=null", *JITTER),
    ("model.positions=learned", "moe.every=0"),
    TRANSFORMER_XL,
    ("moe.router.kind=gshard", "model.activation=geglu", *JITTER),
    (
        "moe.router.kind=gshard",
        "moe.router.normalize_after_limit=true",
        "moe.router.second_expert=sampling",
        *JITTER,
    ),
    ("moe.router.reroutes=3", "moe.capacity_factor=0.5", *JITTER),
    ("moe.router.kind=noisy_top_k",),
    ("moe.router.kind=prototypes", *JITTER),
    (
        "moe.router.kind=deepseek",
        "moe.router.num_groups=4",
        "moe.router.top_groups=2",
        "moe.router.balance_coefficient=0.01",
        "moe.router.group_balance_coefficient=0.01",
        "moe.shared_experts=1",
    ),
    ("moe.router.kind=hash",),
    ("moe.router.kind=hash", "moe.router.table=bigram"),
    ("moe.router.kind=hash", "moe.router.table=dispersed"),
    ("moe.router.kind=random",),
]
PYRAMID = ("moe.num_experts=[4,8]", "moe.scale_expert_gradients=true", *JITTER)
VARIANTS += [
    PYRAMID,
    (*PYRAMID, "moe.router.balance_over=batch"),
    ("moe.num_experts=[8,4]", "moe.router.kind=deepseek", "moe.shared_experts=1"),
]
SHARES = [(2, 1), (2, 2), (4, 2), (4, 4)]
"""Workers, and workers that share the experts out among them."""


@cache
def one_process(overrides: tuple[str, ...]) -> LayoutRun:
    """The run that all others must equal."""
    return train(World(0, 1, 0, 1, torch.device("cpu")), *overrides)


def assert_same_run(expected: LayoutRun, runs: list[LayoutRun], digits: float) -> None:
    """`digits` is the largest relative difference of losses and norms."""
    first = runs[0]
    for run in runs:
        assert run.losses == first.losses
        assert run.norms == first.norms, "norms"
    assert torch.equal(first.loads[0], expected.loads[0])
    assert torch.equal(first.dropped[0], expected.dropped[0])
    assert first.losses == pytest.approx(expected.losses, rel=digits)
    assert first.norms == pytest.approx(expected.norms, rel=10 * digits), "norms"
    assert first.validation == pytest.approx(expected.validation, rel=digits)
    for mine, theirs in zip(first.auxiliary, expected.auxiliary, strict=True):
        assert mine == pytest.approx(theirs, rel=10 * digits)
    for mine, theirs in zip(first.loads, expected.loads, strict=True):
        assert torch.equal(mine, theirs)
    for name in ("entropies", "top_probabilities"):
        for mine, theirs in zip(getattr(first, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=10 * digits, atol=0)


def assert_same_gradients(
    expected: LayoutRun, runs: list[LayoutRun], digits: float, but: Collection[str] = ()
) -> None:
    """Every element of every gradient but those named, within `digits` of the largest of its tensor."""
    whole = gathered([expected.gradients])
    for name, gradient in gathered([run.gradients for run in runs]).items():
        if name in but:
            continue
        largest = whole[name].abs().max()
        assert largest > 0, f"{name}: has no gradient, so nothing is compared"
        difference = (gradient - whole[name]).abs().max() / largest
        assert difference < digits, f"{name}: differs by {difference:.1e} of its largest element"
    for name, norms in expected.shown.items():
        theirs = torch.cat([torch.tensor(layer).reshape(-1) for layer in norms])
        for run in runs:
            ours = torch.cat([torch.tensor(layer).reshape(-1) for layer in run.shown[name]])
            bound = digits * float(theirs.nan_to_num().max())
            torch.testing.assert_close(ours, theirs, rtol=0, atol=bound, equal_nan=True, msg=name)


@cache
def watched(workers: int, layout: tuple[str, ...]) -> tuple[list[LayoutRun], list[list[tuple[int, ...]]]]:
    """Returns the run of each rank, and the shapes of all experts that it stored."""
    runs, whole = zip(*run_workers(workers, train_under_watch, *RANDOM, *layout), strict=True)
    return list(runs), list(whole)


@pytest.mark.parametrize(("workers", "layout"), FAST)
def test_a_layout_trains_like_one_process(workers, layout):
    runs, _ = watched(workers, layout)
    assert_same_gradients(one_process(RANDOM), runs, digits=1e-5)
    assert_same_run(one_process(RANDOM), runs, digits=2e-6)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "layout"), [REPRESENTATIVE, *EVERY_LAYOUT])
def test_every_layout_trains_like_one_process(workers, layout):
    runs = run_workers(workers, train, *RANDOM, *layout)
    assert_same_gradients(one_process(RANDOM), runs, digits=1e-5)
    assert_same_run(one_process(RANDOM), runs, digits=2e-6)


@pytest.mark.parametrize(
    ("workers", "layout"),
    [
        (2, ("parallel.expert=2", "moe.dispatch.kind=one_sided")),
        (4, ("parallel.expert=4", *HIERARCHICAL)),
        (4, ("parallel.expert=2", "moe.dispatch.kind=all_to_all", "data.micro_batch=1")),
    ],
)
def test_layers_with_different_numbers_of_experts_train_like_one_process(workers, layout):
    runs = run_workers(workers, train, *DROPOUT, *PYRAMID, *layout)
    assert_same_gradients(one_process((*DROPOUT, *PYRAMID)), runs, digits=1e-5)
    assert_same_run(one_process((*DROPOUT, *PYRAMID)), runs, digits=2e-6)


def test_transformer_xls_positions_train_like_one_process():
    layout = ("parallel.expert=2", "data.micro_batch=2", "engine.reshard_after_forward=true")
    runs = run_workers(4, train, *DROPOUT, *TRANSFORMER_XL, *layout)
    assert_same_gradients(one_process((*DROPOUT, *TRANSFORMER_XL)), runs, digits=1e-5)
    assert_same_run(one_process((*DROPOUT, *TRANSFORMER_XL)), runs, digits=2e-6)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
@pytest.mark.parametrize(("workers", "expert"), SHARES)
def test_every_kind_of_model_trains_the_same_on_every_layout(workers, expert, variant):
    runs = run_workers(workers, train, *DROPOUT, *variant, f"parallel.expert={expert}")
    assert_same_gradients(one_process((*DROPOUT, *variant)), runs, digits=1e-5)
    assert_same_run(one_process((*DROPOUT, *variant)), runs, digits=2e-6)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("workers", "expert"), [(2, 1), (2, 2), (4, 2)])
def test_bf16_products_train_the_same_within_their_rounding(workers, expert):
    """gelu, because relu has a kink: where rounding differs (`one_sided` weighs rows in fp32) a gradient would jump."""
    precision = (*RANDOM, "precision=bf16", "optim.lr=0.1", "model.activation=gelu")
    expected = one_process(precision)
    runs = run_workers(workers, train, *precision, f"parallel.expert={expert}")
    assert_same_gradients(expected, runs, digits=0.05)
    assert runs[0].losses == pytest.approx(expected.losses, rel=2e-3)
    assert runs[0].norms == pytest.approx(expected.norms, rel=2e-2)


@pytest.mark.parametrize(("workers", "layout"), FAST)
def test_no_rank_holds_all_experts(workers, layout):
    expert = int(layout[0].removeprefix("parallel.expert="))
    for rank, (run, whole) in enumerate(zip(*watched(workers, layout), strict=True)):
        assert whole == [], f"rank {rank} made tensors of all experts: {whole}"
        assert any(box.is_expert for box in run.parameters.values())
        for name, box in run.parameters.items():
            share = torch.Size(box.global_shape).numel() * 4 / workers
            if box.is_expert:
                assert box.data.shape[0] == box.global_shape[0] // expert, f"rank {rank}, {name}"
                assert box.data.numel() * 4 == run.allocated[name] == share, f"rank {rank}, {name}"
            else:
                # FSDP2 pads the first dimension of what it shards to a multiple of the ranks.
                padding = 4 * workers * torch.Size(box.global_shape[1:]).numel()
                assert run.allocated[name] <= share + padding, f"rank {rank}, {name}"


def test_the_watch_sees_a_tensor_of_all_experts():
    _, whole = train_under_watch(World(0, 1, 0, 1, torch.device("cpu")))
    assert (8, 32, 40) in whole


def test_what_is_loaded_after_a_validation_pass_is_used():
    """FSDP2 keeps gathered weights after a forward pass; validation must not leave old ones behind."""
    for losses in run_workers(2, losses_around_a_load, "parallel.expert=1"):
        assert losses[0] != pytest.approx(math.log(300), rel=1e-3)
        assert losses[1] == pytest.approx(math.log(300), rel=1e-6)
