"""The exchange between GPUs of one host, NCCL beside it: cases and checks are those of tests/kernels.

Ranks without a GPU of their own share one, whose time is shared out; what NCCL is needed for is skipped then.
"""

import os
import re
import time
from functools import cache
from pathlib import Path

import pytest
import static_slabs
import torch
from exchange_cases import (
    CASES,
    GPU_SLABS,
    NUM_EXPERTS,
    Case,
    Outcome,
    assert_as_expected,
    exchanged,
    inputs,
    join,
    rows_by_all_to_all,
    run_cases,
)
from exchange_steps import compare_with_all_to_all
from gloo_workers import run_workers
from lost_ranks import die, lose

from moe_kernels.build import library_path
from moe_kernels.errors import PeerTimeoutError
from moe_kernels.exchange import Exchange
from moe_train.config.kinds.dispatch import OneSidedDispatchConfig
from moe_train.config.registry import build
from moe_train.moe.dispatch.one_sided import OneSidedDispatcher
from moe_train.parallel.world import World

LIBRARY, DEVICE = "cuda", "cuda"
NUM_GPUS = torch.cuda.device_count()
SIZES = (1, 2, 4, 8)
NCCL_SIZES = [
    pytest.param(size, marks=pytest.mark.skipif(size > NUM_GPUS, reason=f"NCCL has {NUM_GPUS} CUDA devices"))
    for size in SIZES
]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
on_several = pytest.mark.skipif(NUM_GPUS < 2, reason=f"torch sees {NUM_GPUS} CUDA devices; this needs 2")


@cache
def outcomes(num_ranks: int) -> list[list[Outcome]]:
    """What every rank got in every case: one start of the processes for all of them."""
    library_path(LIBRARY)  # built here, where no rank waits for it
    return run_workers(num_ranks, run_cases, LIBRARY, CASES, device=DEVICE)


@pytest.mark.parametrize("num_ranks", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_exchange_does_what_the_reference_does(num_ranks: int, case: Case):
    assert_as_expected([ranks[CASES.index(case)] for ranks in outcomes(num_ranks)], case)


@pytest.mark.parametrize("num_ranks", NCCL_SIZES)
def test_rows_are_those_of_an_all_to_all_bit_by_bit(num_ranks):
    theirs = run_workers(num_ranks, rows_by_all_to_all, CASES, device=DEVICE)
    for mine, other in zip(outcomes(num_ranks), theirs, strict=True):
        for case, outcome, rows in zip(CASES, mine, other, strict=True):
            if case.capacity is None:
                assert torch.equal(outcome.rows, rows), case.name


@pytest.mark.parametrize("num_ranks", NCCL_SIZES)
def test_layers_accumulation_and_evaluation_share_the_slabs(num_ranks):
    for touched in run_workers(num_ranks, compare_with_all_to_all, LIBRARY, device=DEVICE):
        assert touched[-1] == touched[1], f"slabs in use by step: {touched}"


def test_one_process_needs_no_process_group(monkeypatch):
    monkeypatch.setenv("MOE_KERNELS", LIBRARY)
    exchange = Exchange.join(None, NUM_EXPERTS, 30, device=torch.device(DEVICE, 0), **GPU_SLABS)
    for case in CASES:
        assert_as_expected([exchanged(exchange, case)], case)


def without_a_wait(world: World) -> None:
    """Raises where a dispatch of static size, its combine, or their backward pass wait for the device."""
    exchange = join(world, LIBRARY)
    given = inputs(static_slabs.CASE, world.rank, world.size).to(world.device)
    static_slabs.assert_right(static_slabs.round_trip(exchange, given), given)
    given = given.to(world.device)
    torch.cuda.set_sync_debug_mode("error")
    y = static_slabs.round_trip(exchange, given)
    y.backward(given.grad_y, retain_graph=True)
    torch.cuda.set_sync_debug_mode("default")
    given.x.grad = given.weights.grad = None
    static_slabs.assert_right(y, given)
    exchange.check()


@pytest.mark.parametrize("num_ranks", SIZES)
def test_a_dispatch_of_static_size_waits_for_nothing(num_ranks):
    run_workers(num_ranks, without_a_wait, device=DEVICE)


def replayed(world: World) -> None:
    """Capture dispatch and combine in a graph; replay it on three sets of inputs, an eager round trip in between."""
    exchange = join(world, LIBRARY)
    static = inputs(static_slabs.CASE, world.rank, world.size).to(world.device)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is allocated once is allocated before the capture
            static_slabs.round_trip(exchange, static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = static_slabs.round_trip(exchange, static)
        for number in range(3):
            static.x.normal_()
            static.weights.uniform_()
            static.expert_ids.copy_(static.expert_ids.roll(number, 0))
            graph.replay()
            torch.testing.assert_close(y, static_slabs.by_hand(static))
            eager = static_slabs.round_trip(exchange, static)
            torch.testing.assert_close(eager, y, rtol=0, atol=0)
    exchange.check()


@pytest.mark.parametrize("num_ranks", SIZES)
def test_a_captured_exchange_is_replayed(num_ranks):
    run_workers(num_ranks, replayed, device=DEVICE)


def by_name(world: World) -> bool:
    """Whether a recipe that asks for one_sided gets it."""
    os.environ["MOE_KERNELS"] = LIBRARY
    dispatcher = build(
        "moe.dispatch",
        OneSidedDispatchConfig(slab_mib=1, num_slabs=8),
        num_experts=NUM_EXPERTS,
        group=torch.distributed.group.WORLD,
        timeout_s=30.0,
    )
    return isinstance(dispatcher, OneSidedDispatcher) and dispatcher.exchange.device == world.device


@on_several
def test_a_recipe_that_asks_for_one_sided_gets_it():
    assert all(run_workers(2, by_name, device=DEVICE))


def too_much(world: World) -> str:
    """What is said where the slabs are larger than the GPU."""
    os.environ["MOE_KERNELS"] = LIBRARY
    with pytest.raises(RuntimeError) as caught:
        Exchange.join(
            torch.distributed.group.WORLD,
            NUM_EXPERTS,
            30,
            device=world.device,
            slab_bytes=1 << 40,
            num_slabs=4,
        )
    return str(caught.value)


@pytest.mark.parametrize("num_ranks", SIZES)
def test_more_memory_than_there_is_is_refused_by_all(num_ranks):
    for said in run_workers(num_ranks, too_much, device=DEVICE):
        assert re.search(r"4096\.00 GiB that other GPUs can reach .*; lower slab_bytes or num_slabs", said)


TIMEOUT_S = 2.0


def until_it_fails(rank: int, folder: Path, victim: int, size: int) -> str:
    """Exchange for ever; the victim dies between two rounds. Returns what the others are told in the end."""
    place = torch.device(DEVICE, rank % NUM_GPUS) if DEVICE == "cuda" else torch.device(DEVICE)
    world = World(rank, size, rank, 1, place)
    exchange = join(world, LIBRARY, TIMEOUT_S)
    given = inputs(static_slabs.CASE, rank, size).to(world.device)
    began = time.monotonic()
    try:
        for number in range(10**9):
            if (rank, number) == (victim, 2):
                die()
            began = time.monotonic()
            exchange.dispatch(given.x, given.expert_ids)
    except PeerTimeoutError as error:
        assert time.monotonic() - began < 10 * TIMEOUT_S
        with pytest.raises(PeerTimeoutError, match=re.escape(str(error))):
            exchange.dispatch(given.x, given.expert_ids)  # dead for good
        return str(error)
    return ""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_when_the_time_is_up(victim, tmp_path):
    library_path(LIBRARY)
    said = lose(victim, 2, tmp_path, until_it_fails, victim, 2, device=DEVICE)[1 - victim]
    assert (
        said == f"rank {1 - victim} of 2 timed out after 2 s: rank {victim} did not reach dispatch number 3"
    )
