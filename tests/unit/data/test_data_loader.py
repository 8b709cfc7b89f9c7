"""Batches: hand-written windows, one global order on every layout, one validation set."""

import numpy as np
import pytest
import torch

from moe_train.data.indexed import IndexedTokens
from moe_train.data.loader import Loader, validation_batches
from moe_train.errors import DataError


def stream(num_tokens: int) -> IndexedTokens:
    """A stream whose token at place p is p."""
    return IndexedTokens(
        np.arange(num_tokens, dtype=np.uint16), np.array([num_tokens], np.int32), np.array([0, 1])
    )


def global_batch(loader: Loader, step: int, data_degree: int, micro_batch: int | None = None):
    """First tokens and sequence ids of update `step`, gathered over all ranks and microbatches."""
    batches = [b for rank in range(data_degree) for b in loader.batch(step, rank, data_degree, micro_batch)]
    return (
        torch.cat([batch.tokens[:, 0] for batch in batches]).tolist(),
        torch.cat([batch.sequence_ids for batch in batches]).tolist(),
    )


def test_a_sequence_is_a_window_and_its_targets_are_the_next_tokens():
    loader = Loader(stream(13), sequence_length=4, global_batch=3, seed=0)
    (batch,) = loader.batch(0, 0, 1, None)
    assert batch.tokens.dtype == batch.targets.dtype == batch.sequence_ids.dtype == torch.int64
    assert sorted(batch.tokens.tolist()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert batch.sequence_ids.tolist() == [0, 1, 2]


def test_an_epoch_sees_every_window_once_and_the_next_in_another_order():
    loader = Loader(stream(4 * 32 + 1), sequence_length=4, global_batch=8, seed=3)
    assert loader.steps_per_epoch == 4
    epochs = [
        [first for step in range(4 * epoch, 4 * epoch + 4) for first in global_batch(loader, step, 1)[0]]
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 128, 4))
    assert epochs[0] != epochs[1]


def test_windows_that_do_not_fill_a_batch_are_left_out_of_their_epoch():
    loader = Loader(stream(4 * 11 + 1), sequence_length=4, global_batch=4, seed=0)
    assert loader.steps_per_epoch == 2
    for epoch in range(5):
        seen = [first for step in (0, 1) for first in global_batch(loader, 2 * epoch + step, 1)[0]]
        assert len(set(seen)) == 8


@pytest.mark.parametrize("data_degree", [2, 4, 8])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_every_layout_sees_the_same_global_batches_over_an_epoch_border(data_degree, micro_batch):
    reference = Loader(stream(4 * 50 + 1), sequence_length=4, global_batch=16, seed=1)
    loader = Loader(stream(4 * 50 + 1), sequence_length=4, global_batch=16, seed=1)
    assert loader.steps_per_epoch == 3
    for step in range(8):
        expected = global_batch(reference, step, 1)
        assert global_batch(loader, step, data_degree, micro_batch) == expected
        assert expected[1] == list(range(16 * step, 16 * step + 16))


def test_a_resume_at_any_step_on_another_layout_goes_on_with_the_same_batches():
    whole = Loader(stream(4 * 50 + 1), sequence_length=4, global_batch=16, seed=1)
    uninterrupted = [global_batch(whole, step, 4) for step in range(9)]
    for start, data_degree in ((2, 2), (3, 8), (5, 1)):
        resumed = Loader(stream(4 * 50 + 1), sequence_length=4, global_batch=16, seed=1)
        assert [global_batch(resumed, step, data_degree) for step in range(start, 9)] == uninterrupted[start:]


def test_accumulation_cuts_a_share_without_reordering_it():
    loader = Loader(stream(4 * 16 + 1), sequence_length=4, global_batch=16, seed=0)
    (whole,) = loader.batch(0, 1, 2, None)
    parts = loader.batch(0, 1, 2, 2)
    assert [len(part.tokens) for part in parts] == [2, 2, 2, 2]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.cat([part.sequence_ids for part in parts]).tolist() == list(range(8, 16))


def test_another_seed_is_another_order():
    orders = [
        Loader(stream(401), sequence_length=4, global_batch=100, seed=seed).windows(0) for seed in (0, 1)
    ]
    assert orders[0].tolist() != orders[1].tolist()


def test_a_corpus_smaller_than_one_batch_is_refused_with_its_numbers():
    with pytest.raises(
        DataError,
        match=r"global_batch=4: the 16 training tokens make only 3 sequences of data\.sequence_length=5",
    ):
        Loader(stream(16), sequence_length=5, global_batch=4, seed=0)


def validation(data_degree: int, micro_batch: int, num_sequences: int = 9, group: int = 1):
    """Per rank, the windows of each validation batch."""
    return [
        [
            batch.sequence_ids.tolist()
            for batch in validation_batches(
                stream(4 * 20 + 1), 4, num_sequences, rank, data_degree, micro_batch, group
            )
        ]
        for rank in range(data_degree)
    ]


def test_the_validation_set_is_spread_evenly_over_the_stream():
    assert validation(1, 4, num_sequences=4) == [[[0, 5, 10, 15]]]
    (batch,) = validation_batches(stream(81), 4, 4, 0, 1, 4)
    assert batch.tokens[1].tolist() == [20, 21, 22, 23]
    assert batch.targets[1].tolist() == [21, 22, 23, 24]


def test_validation_takes_what_there_is_when_more_is_asked_for():
    assert validation(1, 100, num_sequences=1000) == [[list(range(20))]]


@pytest.mark.parametrize("data_degree", range(1, 9))
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 16])
def test_every_layout_validates_on_the_same_windows_in_equally_many_batches(data_degree, micro_batch):
    shares = validation(data_degree, micro_batch)
    assert sorted(window for share in shares for batch in share for window in batch) == [
        0, 2, 4, 6, 8, 11, 13, 15, 17,
    ]  # fmt: skip
    assert len({len(share) for share in shares}) == 1
    sizes = [len(batch) for share in shares for batch in share]
    assert 1 <= min(sizes) <= max(sizes) <= micro_batch + 1


def test_validation_keeps_routing_groups_whole_and_the_same():
    groups = [
        {tuple(batch[start : start + 2]) for share in validation(degree, 4, 9, 2) for batch in share
         for start in range(0, len(batch), 2)}
        for degree in (1, 2, 3, 4)
    ]  # fmt: skip
    assert groups[0] == {(0, 2), (5, 7), (10, 12), (15, 17)}
    assert groups == [groups[0]] * 4


def test_a_validation_set_with_too_few_sequences_for_the_workers_is_refused():
    with pytest.raises(DataError, match=r"validation_sequences=9: the 9 validation tokens make 2 sequences"):
        validation_batches(stream(9), 4, 9, 0, 3, 1)
    with pytest.raises(DataError, match="the 3 validation tokens make 0 sequences"):
        validation_batches(stream(3), 4, 9, 0, 1, 1)
