"""`moe-train plan` against updates that ran: the same collectives, bytes and FLOPs, on the same layouts.

BASE sends every expert as many rows as another, so that the expected numbers of rows are those that were sent.
"""

from functools import cache

import pytest
from gloo_workers import run_workers
from measured_update import Measured, measure
from tiny_model import tiny_recipe

from moe_train.planner.trace import Trace, trace

EVEN = (
    "moe.router.kind=base",
    "moe.capacity_factor=null",
    "moe.dispatch.kind=all_to_all",
    "data.global_batch=16",
)
CASES = [
    (*EVEN, "parallel.expert=4", "optim.kind=adamw"),
    (*EVEN, "parallel.expert=2", "engine.reshard_after_forward=true", "optim.kind=adafactor"),
    (*EVEN, "parallel.expert=2", "data.micro_batch=1", "precision=bf16", "model.tied_embeddings=false"),
    (*EVEN, "parallel.expert=2", "parallel.shard=2", "engine.recompute=block", "data.micro_batch=2"),
    (*EVEN, "parallel.expert=4", "engine.overlap=halves", "moe.shared_experts=1"),  # two sequences a half
    # The only tensor groups here: torch caches a mesh for others of the same ranks, whose groups would have no name.
    (*EVEN, "parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2", "model.activation=swiglu"),
    (*EVEN, "moe.dispatch.kind=local", "model.positions=learned", "model.activation=swiglu"),
]


@cache
def measured() -> list[list[Measured]]:
    """What ran on four workers, by rank and case."""
    return run_workers(4, measure, *CASES)


@cache
def planned(case: tuple[str, ...]) -> Trace:
    return trace(tiny_recipe(*case), 4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[len(EVEN) :]))
def test_what_is_planned_is_what_ran(case: tuple[str, ...]) -> None:
    ran, plan = measured()[0][CASES.index(case)], planned(case)
    assert plan.collectives.counts == ran.moved.counts
    assert plan.collectives.bytes == ran.moved.bytes
    assert (plan.start.counts, plan.start.bytes) == (ran.start.counts, ran.start.bytes)
    assert plan.flops == ran.flops
    assert (plan.parameter_bytes, plan.gradient_bytes, plan.optimizer_bytes) == (
        ran.parameter_bytes,
        ran.gradient_bytes,
        ran.optimizer_bytes,
    )
    assert plan.peak_bytes == pytest.approx(ran.peak_bytes, rel=0.05)
