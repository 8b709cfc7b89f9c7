"""What overlaps the exchange changes no number, and does overlap: on every layout, in both passes.

`shared` is equal to the bit. With `halves` gradients of weights are sums of two products, rounded once more.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_workers import run_workers
from layout_run import LayoutRun, tiny_step, train
from test_layouts import assert_same_gradients, assert_same_run, one_process
from test_layouts_recompute import assert_same_numbers
from tiny_model import global_batch, share_of

from moe_kernels import all_to_all
from moe_kernels.all_to_all import Trip
from moe_train.model.feedforward import FeedForward
from moe_train.moe.experts import GroupedFeedForward
from moe_train.parallel.world import World

SHARED = ("moe.shared_experts=1",)
DROPOUT = ("model.dropout=0.1", "moe.router.jitter=0.1", "moe.expert_dropout=0.2", *SHARED)
MODELS = [
    DROPOUT,
    ("moe.router.kind=soft", "moe.capacity_factor=null", "moe.eval_capacity_factor=null", *SHARED),
    ("moe.router.kind=top_k", "moe.activation=swiglu", "moe.every=2", *SHARED),
]
ON_TWO = [
    (DROPOUT, ("parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true", "engine.recompute=block")),
]
ON_FOUR = [
    (model, layout)
    for model in MODELS
    for layout in (
        ("parallel.expert=2", "engine.reshard_after_forward=true", "engine.recompute=experts"),
        ("parallel.expert=2", "data.micro_batch=1", "engine.reduce_each_microbatch=true"),
        ("parallel.expert=4", "parallel.tensor=2", "engine.recompute=block"),
        ("parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true"),
        ("parallel.expert_tensor=2", "parallel.tensor=2", "parallel.shard=1"),
        ("parallel.expert=2", "parallel.expert_tensor=2", "data.micro_batch=1"),
        ("parallel.expert=2", "engine.kind=deepspeed", "engine.stage=2", "data.micro_batch=1"),
        ("parallel.expert=4", "parallel.tensor=2", "engine.kind=deepspeed", "engine.stage=1"),
    )
]
Case = tuple[tuple[str, ...], tuple[str, ...]]


def trained_with_each(world: World, cases: list[Case]) -> list[list[LayoutRun]]:
    """The runs of each case without overlap, with shared experts beside the exchange, and in halves."""
    kinds = ("none", "shared", "halves")
    return [
        [
            train(world, *model, *layout, "moe.dispatch.kind=all_to_all", f"engine.overlap={kind}")
            for kind in kinds
        ]
        for model, layout in cases
    ]


def assert_overlap_changes_nothing(workers: int, cases: list[Case]) -> None:
    of_ranks = run_workers(workers, trained_with_each, cases, timeout_s=1100)
    for index, (model, layout) in enumerate(cases):
        runs = [of_rank[index] for of_rank in of_ranks]
        for without, shared, halves in runs:
            assert_same_numbers([without, shared])
            assert halves.losses[0] == pytest.approx(without.losses[0], rel=1e-6), f"{model} {layout}"
            assert torch.equal(halves.loads[0], without.loads[0])
        expected = one_process(model)
        assert_same_gradients(expected, [halves for *_, halves in runs], digits=1e-5)
        assert_same_run(expected, [halves for *_, halves in runs], digits=2e-6)


def test_what_overlaps_the_exchange_changes_no_number():
    assert_overlap_changes_nothing(2, ON_TWO)


@pytest.mark.distributed_exhaustive
def test_overlap_changes_no_number_on_any_layout():
    assert_overlap_changes_nothing(4, ON_FOUR)


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, before: Callable, after: Callable) -> None:
    """Has `before` and `after` called around a function of `owner`, which stays what it is."""
    sound = getattr(owner, name)

    def wrapped(*arguments: Any) -> Any:
        before(*arguments)
        result = sound(*arguments)
        after(*arguments)
        return result

    is_static = isinstance(owner.__dict__[name], staticmethod)
    patch.setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)


def one_update(world: World, *overrides: str) -> None:
    recipe, training_step = tiny_step(world, "parallel.expert=2", "model.num_layers=1", *overrides)
    training_step.update(share_of(global_batch(recipe, 0), world.rank, world.size), 0, False)


def events_of(world: World, overlap: str) -> list[str]:
    """What an update of one MoE layer does, in order: starts and arrivals of rows, and products of experts."""
    events: list[str] = []

    def note(event: str) -> Callable:
        return lambda *_: events.append(event)

    with pytest.MonkeyPatch.context() as patch:
        wrap(patch, Trip, "_start", note("start"), note(""))
        wrap(patch, Trip, "arrive", note("arrive"), note(""))
        wrap(patch, GroupedFeedForward, "forward", note("experts"), note(""))
        wrap(patch, GroupedFeedForward, "backward", note("gradients of experts"), note(""))
        wrap(patch, FeedForward, "forward", note("shared"), note(""))
        one_update(world, *SHARED, f"engine.overlap={overlap}")
    return [event for event in events if event]


def events_of_each(world: World) -> dict[str, list[str]]:
    return {overlap: events_of(world, overlap) for overlap in ("none", "shared", "halves")}


def test_rows_travel_while_experts_and_shared_experts_run():
    """Case 9: the order is the same on all ranks (NVIDIA/Megatron-LM#1810)."""
    first, second = run_workers(2, events_of_each)
    assert first == second
    assert first["none"] == ["experts", "shared", "gradients of experts"]
    assert first["shared"] == [
        *("start", "shared", "arrive", "experts", "start", "arrive"),
        *("start", "arrive", "gradients of experts", "start", "arrive"),
    ]
    assert first["halves"] == [
        *("start", "start", "shared", "arrive", "experts", "start", "arrive", "experts"),
        *("start", "arrive", "arrive"),
        *("start", "start", "arrive", "gradients of experts", "start", "arrive", "gradients of experts"),
        *("start", "arrive", "arrive"),
    ]


class SlowLink:
    """Lets rows arrive no sooner than by a link that takes `second_per_row` seconds for each, one after the other."""

    def __init__(self, second_per_row: float) -> None:
        self.second_per_row, self.is_free_at, self.arrivals = second_per_row, 0.0, {}

    def send(self, trip: Any, rows: torch.Tensor) -> None:
        self.is_free_at = max(self.is_free_at, time.monotonic()) + len(rows) * self.second_per_row
        self.arrivals[trip] = self.is_free_at

    def wait(self, trip: Any) -> None:
        time.sleep(max(0.0, self.arrivals.pop(trip) - time.monotonic()))


def seconds_with_a_slow_link(world: World, overlap: str) -> float:
    """An update in which rows take as long on their way as at the experts: most of a second each, if one by one."""
    link, second_per_row = SlowLink(0.01), 0.01
    with pytest.MonkeyPatch.context() as patch:
        wrap(patch, Trip, "_start", lambda trip, rows, *_: link.send(trip, rows), lambda *_: None)
        wrap(patch, Trip, "arrive", lambda trip: None, link.wait)
        wrap(
            patch,
            all_to_all,
            "all_to_all",
            lambda rows, *_: link.send("now", rows),
            lambda *_: link.wait("now"),
        )
        for name in ("forward", "backward"):
            wrap(
                patch,
                GroupedFeedForward,
                name,
                lambda ctx, rows, *_: time.sleep(len(rows) * second_per_row),
                lambda *_: None,
            )
        began = time.monotonic()
        one_update(world, f"engine.overlap={overlap}", "moe.dispatch.kind=all_to_all")
        return time.monotonic() - began


def seconds_of_both(world: World) -> tuple[float, float]:
    seconds_with_a_slow_link(world, "none")  # so that both are not the first
    return seconds_with_a_slow_link(world, "none"), seconds_with_a_slow_link(world, "halves")


@pytest.mark.distributed_exhaustive
def test_a_slow_link_costs_less_in_halves():
    """Without overlap rows travel four times as long as they are at the experts in half the time: 6 units, then 4."""
    for one_by_one, halves in run_workers(2, seconds_of_both):
        assert halves < 0.85 * one_by_one
