"""Shares of rows: their bounds, and both ways with gradients, on axes that do and do not divide the rows."""

import pytest
import torch
from gloo_workers import run_workers
from tiny_model import normal
from torch.distributed.device_mesh import init_device_mesh

from moe_train.parallel.axis import Axis
from moe_train.parallel.share import bounds, gather, split
from moe_train.parallel.world import World

NUM_ROWS = (0, 1, 2, 5, 6)


def there_and_back(world: World) -> None:
    axis = Axis.along(init_device_mesh("cpu", (world.size,)))
    for num_rows in NUM_ROWS:
        for dtype in (torch.float32, torch.bfloat16):
            x = normal(num_rows, 3).to(dtype).requires_grad_()
            factors, grad = normal(num_rows, 3, seed=1).to(dtype), normal(num_rows, 3, seed=2).to(dtype)
            mine = slice(*bounds(num_rows, axis))
            share = split(x, axis)
            assert torch.equal(share, x[mine])
            y = gather(share * factors[mine], axis, num_rows)
            assert torch.equal(y, x * factors)
            y.backward(grad)
            assert torch.equal(x.grad, grad * factors), "a row's gradient is summed twice, or left out"


def test_rows_divided_among_workers_come_back_with_whole_gradients():
    run_workers(3, there_and_back)


@pytest.mark.parametrize(
    ("num_rows", "size", "shares"),
    [
        (6, 2, [(0, 3), (3, 6)]),
        (5, 2, [(0, 3), (3, 5)]),
        (2, 3, [(0, 1), (1, 2), (2, 2)]),
        (5, 4, [(0, 2), (2, 4), (4, 5), (5, 5)]),
        (0, 2, [(0, 0), (0, 0)]),
    ],
)
def test_shares_are_runs_and_the_last_ones_may_be_short(num_rows, size, shares):
    assert [bounds(num_rows, Axis(size, rank)) for rank in range(size)] == shares


def test_a_single_worker_has_all_rows():
    x = normal(4, 2)
    assert split(x, Axis()) is x
    assert gather(x, Axis(), 4) is x
