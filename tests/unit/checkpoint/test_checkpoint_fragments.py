"""Ranges of flattened tensors as boxes: every range of small tensors, and a rank's part of a flattened parameter."""

import itertools
import math

import pytest
import torch

from moe_train.checkpoint.coverage import coverage_finding
from moe_train.checkpoint.fragments import boxes_of_range, fragment_shards
from moe_train.checkpoint.layout import Shard

SHAPES = [
    (),
    (1,),
    (7,),
    (3, 4),
    (1, 5),
    (5, 1),
    (2, 3, 4),
    (3, 1, 2),
    (1, 1, 1),
    (2, 3, 2, 2),
    (0, 3),
    (3, 0, 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_range_is_a_few_boxes_that_hold_its_elements_once_and_in_order(shape):
    numbers = torch.arange(math.prod(shape)).view(shape)
    for start, stop in itertools.combinations(range(numbers.numel() + 1), 2):
        boxes = list(boxes_of_range(shape, start, stop))
        pieces = [
            numbers[tuple(slice(at, at + n) for at, n in zip(*box, strict=True))].reshape(-1) for box in boxes
        ]
        assert torch.cat(pieces).tolist() == list(range(start, stop)), (start, stop)
        assert all(piece.numel() for piece in pieces)
        assert len(boxes) <= max(2 * len(shape) - 1, 1), (start, stop)
    assert list(boxes_of_range(shape, 0, 0)) == []


def test_the_bound_is_reached():
    assert list(boxes_of_range((4, 3, 5), 7, 52)) == [
        ((0, 1, 2), (1, 1, 3)),
        ((0, 2, 0), (1, 1, 5)),
        ((1, 0, 0), (2, 3, 5)),
        ((3, 0, 0), (1, 1, 5)),
        ((3, 1, 0), (1, 1, 2)),
    ]


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("cuts", [1, 2, 3, 5])
def test_the_ranges_of_all_ranks_cover_the_tensor_once(shape, cuts):
    total = math.prod(shape)
    bounds = [total * cut // cuts for cut in range(cuts + 1)]
    boxes = [box for start, stop in itertools.pairwise(bounds) for box in boxes_of_range(shape, start, stop)]
    assert coverage_finding(shape, boxes) is None


def test_a_fragment_is_views_at_the_global_places_of_what_a_rank_holds():
    """Rank 1 of 2 holds experts 2 and 3 of four, and the optimizer elements 4 to 10 of its 2 x 3 x 2."""
    numbers = torch.arange(24.0).view(4, 3, 2)
    whole = Shard(torch.empty(2, 3, 2), (4, 3, 2), (2, 0, 0), is_expert=True)
    values = torch.full((7,), -1.0)
    shards = fragment_shards(whole, 4, values, is_owner=False)
    assert [(shard.offsets, tuple(shard.data.shape)) for shard in shards] == [
        ((2, 2, 0), (1, 1, 2)),
        ((3, 0, 0), (1, 2, 2)),
        ((3, 2, 0), (1, 1, 1)),
    ]
    for shard in shards:
        assert (shard.global_shape, shard.is_expert, shard.is_owner) == ((4, 3, 2), True, False)
        place = tuple(slice(at, at + n) for at, n in zip(shard.offsets, shard.data.shape, strict=True))
        shard.data.copy_(numbers[place])  # as loading does
    assert values.tolist() == [16, 17, 18, 19, 20, 21, 22]


def test_a_rank_that_holds_nothing_has_no_box():
    whole = Shard(torch.empty(2, 3), (2, 3), (0, 0))
    assert fragment_shards(whole, 6, torch.empty(0), is_owner=True) == ()


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (5, 2), (7, 0)])
def test_a_range_outside_of_the_box_is_refused(start, count):
    whole = Shard(torch.empty(2, 3), (2, 3), (0, 0))
    with pytest.raises(ValueError, match="exceed a box of shape"):
        fragment_shards(whole, start, torch.empty(count), is_owner=True)
