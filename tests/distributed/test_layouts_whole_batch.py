"""A balance loss of the whole batch is the same on every layout: its value, and all gradients, padding included."""

from functools import cache

import pytest
import torch
from balanced_routers import BALANCED, balanced
from gloo_workers import run_workers
from layout_run import balanced_update, gathered

from moe_train.parallel.world import World

LAYOUTS = [
    (workers, (f"parallel.expert={expert}", f"data.micro_batch={8 // workers // accumulation}", *more))
    for workers, expert, more in (
        (1, 1, ()),
        (2, 1, ()),
        (2, 2, ()),
        (4, 1, ("engine.reshard_after_forward=true",)),
        (4, 2, ()),
    )
    for accumulation in (1, 2)
]
FAST = [
    ("noisy_top_k", 2, ("parallel.expert=2", "data.micro_batch=4"), False),
    ("hierarchical_top_k", 2, ("parallel.expert=1", "data.micro_batch=2"), True),
    ("switch", 4, ("parallel.expert=2", "data.micro_batch=1"), True),
]


@cache
def of_one_process(kind: str, is_padded: bool):
    return balanced_update(World(0, 1, 0, 1, torch.device("cpu")), is_padded, *balanced(kind))


def assert_same_update(kind: str, workers: int, layout: tuple[str, ...], is_padded: bool) -> None:
    losses, gradients, validation = of_one_process(kind, is_padded)
    runs = run_workers(workers, balanced_update, is_padded, *balanced(kind), *layout)
    for of_rank, _, of_validation in runs:
        assert of_rank == pytest.approx(losses, rel=1e-5, abs=1e-7)
        assert of_validation == pytest.approx(validation, rel=1e-5)
    whole = gathered([gradients])
    for name, gradient in gathered([boxes for _, boxes, _ in runs]).items():
        largest = float(whole[name].abs().max())
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-5 * largest + 1e-7, msg=name)


@pytest.mark.parametrize(("kind", "workers", "layout", "is_padded"), FAST)
def test_a_layout_makes_the_update_of_one_process(kind, workers, layout, is_padded):
    assert_same_update(kind, workers, layout, is_padded)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("workers", "layout"), LAYOUTS)
@pytest.mark.parametrize("kind", BALANCED)
def test_every_layout_makes_the_update_of_one_process(kind, workers, layout, is_padded):
    assert_same_update(kind, workers, layout, is_padded)
