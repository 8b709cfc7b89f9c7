"""Counts against torch.bincount, also of no ids and of some of them only."""

import pytest
import torch

from moe_train.moe.counts import counts_of


@pytest.mark.parametrize("size", [0, 1, 57])
def test_counts_are_those_of_bincount(size):
    ids = torch.randint(0, 7, (size,), generator=torch.Generator().manual_seed(size))
    counts = counts_of(ids, 9)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, torch.bincount(ids, minlength=9))


def test_only_what_is_counted_counts():
    ids = torch.tensor([0, 2, 2, 1, 2])
    counted = torch.tensor([True, True, False, False, True])
    assert counts_of(ids, 4, counted).tolist() == [1, 0, 2, 0]
