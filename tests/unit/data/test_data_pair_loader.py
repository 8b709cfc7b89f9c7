"""Batches of pairs: what is in them, their padding, and that no layout sees other ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_train.data.batch import IGNORED, Batch
from moe_train.data.indexed import IndexedTokens, IndexedWriter
from moe_train.data.pair_loader import PairLoader, Pairs, validation_pairs
from moe_train.errors import DataError

EOS = 1


def token_file(folder: Path, lengths: list[tuple[int, int]]) -> IndexedTokens:
    """Pair n has tokens 100 n + 10, 11, ... on the left and 100 n + 50, 51, ... on the right, each ended by 1."""
    with IndexedWriter(folder / "pairs", np.uint16) as writer:
        for number, (source, target) in enumerate(lengths):
            writer.add(
                [100 * number + 10 + place for place in range(source - 1)] + [EOS],
                [100 * number + 50 + place for place in range(target - 1)] + [EOS],
            )
    return IndexedTokens.open(folder / "pairs")


def many(folder: Path, count: int = 61) -> IndexedTokens:
    return token_file(folder, [(2 + 7 * n % 20, 2 + 5 * n % 30) for n in range(count)])


def stacked(batches: list[Batch]) -> dict[str, torch.Tensor]:
    names = ("tokens", "targets", "sequence_ids", "is_real", "source", "source_is_real")
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}


def test_a_batch_by_hand(tmp_path):
    pairs = Pairs(token_file(tmp_path, [(3, 2), (40, 4), (2, 4)]), sequence_length=6)
    assert (len(pairs), pairs.num_too_long) == (2, 1)
    assert pairs.padded(np.array([0, 1])) == (6, 6)  # 8, but for the longest sequence allowed
    batch = pairs.batch(np.array([1, 0]), np.array([7, 8]), (4, 5), 3.0)
    assert batch.source.tolist() == [[210, 1, 0, 0], [10, 11, 1, 0]]
    assert batch.source_is_real.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert batch.tokens.tolist() == [[0, 250, 251, 252, 1], [0, 50, 1, 0, 0]]
    assert batch.targets.tolist() == [[250, 251, 252, 1, IGNORED], [50, 1, IGNORED, IGNORED, IGNORED]]
    assert batch.is_real.tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]
    assert batch.sequence_ids.tolist() == [7, 8]
    assert (batch.num_targets, batch.targets_per_sequence) == (6, 3.0)


def test_every_pair_comes_once_an_epoch_and_epochs_differ(tmp_path):
    loader = PairLoader(many(tmp_path), 32, 8, seed=3)
    assert loader.steps_per_epoch == 7
    epochs = []
    for epoch in range(2):
        rows = [loader.batch(7 * epoch + place, 0, 1, None)[0].source[:, 0] for place in range(7)]
        first_tokens = torch.cat(rows).tolist()
        assert len(set(first_tokens)) == 56
        epochs.append(first_tokens)
    assert epochs[0] != epochs[1]
    other = PairLoader(many(tmp_path), 32, 8, seed=4)
    rows = [other.batch(place, 0, 1, None)[0].source[:, 0] for place in range(7)]
    assert torch.cat(rows).tolist() != epochs[0]


def test_pairs_of_like_length_are_put_together(tmp_path):
    loader = PairLoader(many(tmp_path, 400), 32, 16, seed=0)
    real = padded = 0
    for step in range(loader.steps_per_epoch):
        (batch,) = loader.batch(step, 0, 1, None)
        real += batch.num_targets
        padded += batch.targets.numel()
        assert batch.targets.shape[1] % 8 == 0
    assert real / padded > 0.75  # 0.5 if batches were drawn at random


@pytest.mark.parametrize(("degree", "micro"), [(1, 3), (2, None), (2, 3), (4, None), (6, 1)])
def test_every_layout_sees_the_same_global_batch_padded_alike(tmp_path, degree, micro):
    loader = PairLoader(many(tmp_path), 32, 12, seed=1)
    for step in (0, 4, 9):
        whole = stacked(loader.batch(step, 0, 1, None))
        shares = [batch for rank in range(degree) for batch in loader.batch(step, rank, degree, micro)]
        assert {
            name: torch.equal(value, whole[name]) for name, value in stacked(shares).items()
        } == dict.fromkeys(whole, True)
        (mean,) = {batch.targets_per_sequence for batch in shares}
        assert mean == pytest.approx(sum(batch.num_targets for batch in shares) / 12)


def test_a_batch_depends_on_nothing_that_came_before(tmp_path):
    tokens = many(tmp_path)
    used, fresh = PairLoader(tokens, 32, 8, seed=2), PairLoader(tokens, 32, 8, seed=2)
    for step in range(16):
        (last,) = used.batch(step, 0, 1, None)
    (direct,) = fresh.batch(15, 0, 1, None)
    assert torch.equal(last.source, direct.source)
    assert torch.equal(last.sequence_ids, torch.arange(120, 128))


@pytest.mark.parametrize(("degree", "micro", "group"), [(1, 4, 1), (2, 8, 1), (3, 2, 2), (4, 1, 1)])
def test_validation_is_the_same_set_on_every_layout(tmp_path, degree, micro, group):
    tokens = many(tmp_path)
    shares = [validation_pairs(tokens, 32, 20, rank, degree, micro, group) for rank in range(degree)]
    assert len({len(share) for share in shares}) == 1
    found = stacked([batch for share in shares for batch in share])
    order = found["sequence_ids"].argsort()
    whole = stacked(validation_pairs(tokens, 32, 20, 0, 1, 20))
    assert all(torch.equal(value[order], whole[name]) for name, value in found.items())


def test_too_few_pairs_are_said_with_the_way_out(tmp_path):
    tokens = many(tmp_path, 10)
    with pytest.raises(DataError, match=r"data.global_batch=16: only \d+ training pairs have at most .*=12"):
        PairLoader(tokens, 12, 16, seed=0)
    with pytest.raises(DataError, match=r"data.validation_sequences=2: .* for 3 workers"):
        validation_pairs(tokens, 32, 2, 0, 3, 1)
