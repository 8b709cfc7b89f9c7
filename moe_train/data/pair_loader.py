"""Makes padded batches of sentence pairs, without state: a batch is a function of the seed and the update's number.

Each epoch draws a new order of the pairs and groups those of similar length, so that little is padded; the batches then
come in random order. The padded length depends on the whole global batch, never on the part that a rank sees.
B sequences, S tokens of a target, R tokens of a source.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from moe_train.data.batch import IGNORED, Batch
from moe_train.data.indexed import IndexedTokens
from moe_train.data.loader import rank_batches
from moe_train.data.tokenizer import PAD_ID
from moe_train.errors import DataError

BUCKET = 8
"""Lengths are similar if they are equal when rounded up to a multiple of this, to which batches are padded."""

Numbers = NDArray[np.int64]


class Pairs:
    """Numbers the pairs of a token file whose sides are both at most `sequence_length` long, in the file's order."""

    def __init__(self, tokens: IndexedTokens, sequence_length: int) -> None:
        ends = np.cumsum(tokens.sequence_lengths, dtype=np.int64).reshape(-1, 2)
        lengths = tokens.sequence_lengths.reshape(-1, 2).astype(np.int64)
        fits = (lengths <= sequence_length).all(axis=1)
        self._tokens, self._sequence_length = tokens.tokens, sequence_length
        self._ends = ends[fits]
        self.lengths = lengths[fits]
        """Number of tokens of each pair's source and target, each with its `<eos>`."""
        self.num_too_long = int((~fits).sum())
        """Number of pairs that are left out."""

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, pairs: Numbers) -> tuple[int, int]:
        """Returns the lengths to which these pairs' sources and targets are padded."""
        source, target = -(-self.lengths[pairs].max(axis=0) // BUCKET) * BUCKET
        return min(int(source), self._sequence_length), min(int(target), self._sequence_length)

    def batch(
        self, pairs: Numbers, sequence_ids: Numbers, padded: tuple[int, int], mean_targets: float
    ) -> Batch:
        """Returns a batch of these pairs, in which the decoder reads `<pad>` first and predicts the target and `<eos>`.

        `mean_targets` is the mean number of a pair's target tokens in the global batch.
        """
        source, source_is_real = self._side(0, pairs, padded[0])
        target, is_real = self._side(1, pairs, padded[1])
        start = target.new_full((len(target), 1), PAD_ID)
        return Batch(
            tokens=torch.cat((start, target[:, :-1]), dim=1),
            targets=target.masked_fill(~is_real, IGNORED),
            sequence_ids=torch.from_numpy(sequence_ids),
            is_real=is_real,
            source=source,
            source_is_real=source_is_real,
            targets_per_sequence=mean_targets,
        )

    def _side(self, side: int, pairs: Numbers, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns one side's tokens, padded at the end to `width`, and which of them are real."""
        lengths, ends = self.lengths[pairs, side], self._ends[pairs, side]
        place = np.arange(width)
        is_real = place < lengths[:, None]
        tokens = self._tokens[np.where(is_real, (ends - lengths)[:, None] + place, 0)].astype(np.int64)
        return torch.from_numpy(np.where(is_real, tokens, PAD_ID)), torch.from_numpy(is_real)


class PairLoader:
    """Serves training batches of pairs. See `Loader` in loader.py, which serves windows of text."""

    def __init__(self, tokens: IndexedTokens, sequence_length: int, global_batch: int, seed: int) -> None:
        """Serves `global_batch` pairs per update. Raises DataError if fewer pairs are short enough."""
        self.pairs = Pairs(tokens, sequence_length)
        self._global_batch = global_batch
        self.steps_per_epoch = len(self.pairs) // global_batch
        """Updates until the order is drawn anew."""
        if self.steps_per_epoch == 0:
            raise DataError(
                f"data.global_batch={global_batch}: only {len(self.pairs)} training pairs have at most "
                f"data.sequence_length={sequence_length} tokens on both sides ({self.pairs.num_too_long} have more); "
                "use a smaller batch, longer sequences or more text"
            )

        @lru_cache(maxsize=1)
        def batches(epoch: int) -> Numbers:
            return _batches(self.pairs, global_batch, np.random.Generator(np.random.PCG64([seed, epoch])))

        self._batches = batches

    def batch(self, step: int, data_rank: int, data_degree: int, micro_batch: int | None) -> list[Batch]:
        """Returns rank `data_rank`'s share of update `step` in microbatches of `micro_batch` pairs (None: one).

        The shares of ranks 0, 1, ... in this order make the global batch; `sequence_ids` number its pairs through the
        whole run.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        pairs = self._batches(epoch)[place]
        padded, mean_targets = self.pairs.padded(pairs), float(self.pairs.lengths[pairs, 1].mean())
        share = self._global_batch // data_degree
        size = micro_batch or share
        first = data_rank * share
        return [
            self.pairs.batch(
                pairs[start : start + size],
                np.arange(start, start + size) + step * self._global_batch,
                padded,
                mean_targets,
            )
            for start in range(first, first + share, size)
        ]


def validation_pairs(
    tokens: IndexedTokens,
    sequence_length: int,
    num_pairs: int,
    data_rank: int,
    data_degree: int,
    micro_batch: int,
    group_sequences: int = 1,
) -> list[Batch]:
    """Returns rank `data_rank`'s share of the validation set: up to `num_pairs` pairs, evenly spread.

    As with `validation_batches` of loader.py, the set is the same each time and on every layout, and all ranks get the
    same number of batches, none empty. All batches are padded to one length on every layout. `sequence_ids` are the
    pairs' numbers. Raises DataError if there is no group of `group_sequences` for every rank.
    """
    pairs = Pairs(tokens, sequence_length)
    num_groups = min(num_pairs, len(pairs)) // group_sequences
    if num_groups < data_degree:
        raise DataError(
            f"data.validation_sequences={num_pairs}: of the validation pairs {len(pairs)} have at most "
            f"data.sequence_length={sequence_length} tokens on both sides, which are only {num_groups} groups of "
            f"moe.group_sequences={group_sequences} for {data_degree} workers; "
            "raise data.validation_sequences, data.sequence_length or data.validation_fraction"
        )
    count = num_groups * group_sequences
    numbers = np.arange(count, dtype=np.int64) * len(pairs) // count
    padded, mean_targets = pairs.padded(numbers), float(pairs.lengths[numbers, 1].mean())
    batches = rank_batches(numbers, data_rank, data_degree, micro_batch, group_sequences)
    return [pairs.batch(batch, batch, padded, mean_targets) for batch in batches]


def _batches(pairs: Pairs, size: int, generator: np.random.Generator) -> Numbers:
    """Returns the batches of an epoch as rows, in random order: random pairs of similar length within each row."""
    order = generator.permutation(len(pairs))[: len(pairs) // size * size]
    source, target = (-(-pairs.lengths[order] // BUCKET)).T
    batches = order[np.lexsort((source, target))].reshape(-1, size)
    return generator.permutation(batches)
