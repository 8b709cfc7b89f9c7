"""Makes batches of a token stream, without state: a batch is a function of the seed and the update's number.

All workers see one global order, and each takes its share; so a run that resumes with another number of workers, or
from any step, sees the same global batches. B sequences, S tokens.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from moe_train.data.batch import Batch
from moe_train.data.indexed import IndexedTokens
from moe_train.errors import DataError

MakeBatch = Callable[[Int[Tensor, "B S_plus_1"], Int[Tensor, " B"]], Batch]
"""Turns windows and their sequence numbers into what a model reads and predicts; objectives provide this."""


def next_tokens(windows: Int[Tensor, "B S_plus_1"], sequence_ids: Int[Tensor, " B"]) -> Batch:
    """Returns a batch that reads each token of a window but the last, and predicts the token after it."""
    return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), sequence_ids)


class Loader:
    """Serves training batches: windows of the stream in an order drawn anew for every epoch.

    Window w is the S + 1 tokens w*S .. w*S + S. Windows that do not fill a global batch at the end of an epoch are left
    out of that epoch.
    """

    def __init__(
        self,
        tokens: IndexedTokens,
        sequence_length: int,
        global_batch: int,
        seed: int,
        make_batch: MakeBatch = next_tokens,
    ) -> None:
        """Serves `global_batch` sequences of `sequence_length` tokens per update.

        Raises DataError if the tokens do not fill one batch.
        """
        self._make_batch = make_batch
        self._tokens = tokens
        self._sequence_length = sequence_length
        self._global_batch = global_batch
        num_windows = _num_windows(tokens, sequence_length)
        self.steps_per_epoch = num_windows // global_batch
        """Updates until the order is drawn anew."""
        if self.steps_per_epoch == 0:
            raise DataError(
                f"data.global_batch={global_batch}: the {len(tokens.tokens)} training tokens make only "
                f"{num_windows} sequences of data.sequence_length={sequence_length}; "
                "use a smaller batch, shorter sequences or more text"
            )

        @lru_cache(maxsize=1)
        def order(epoch: int) -> NDArray[np.int64]:
            return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_windows)

        self._order = order

    def windows(self, step: int) -> NDArray[np.int64]:
        """Returns the windows of the global batch of update `step`, counted from 0, in their order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[place * self._global_batch : (place + 1) * self._global_batch]

    def batch(self, step: int, data_rank: int, data_degree: int, micro_batch: int | None) -> list[Batch]:
        """Returns rank `data_rank`'s share of update `step` in microbatches of `micro_batch` sequences (None: one).

        The shares of ranks 0, 1, ... in this order make the global batch; `sequence_ids` number its sequences through
        the whole run.
        """
        share, rest = divmod(self._global_batch, data_degree)
        size = micro_batch or share
        assert rest == 0, "config.check accepts only degrees that divide the batch"
        assert share % size == 0, "config.check accepts only microbatches that divide a share"
        windows = self.windows(step)
        first = data_rank * share
        return [
            self._make_batch(
                _windows(self._tokens, self._sequence_length, windows[start : start + size]),
                torch.arange(start, start + size) + step * self._global_batch,
            )
            for start in range(first, first + share, size)
        ]


def validation_batches(
    tokens: IndexedTokens,
    sequence_length: int,
    num_sequences: int,
    data_rank: int,
    data_degree: int,
    micro_batch: int,
    group_sequences: int = 1,
    make_batch: MakeBatch = next_tokens,
) -> list[Batch]:
    """Returns rank `data_rank`'s share of the validation set: up to `num_sequences` windows, evenly spread.

    The set is the same each time and on every layout. All ranks get the same number of batches, none empty, so that
    their collectives match; batches differ by at most one group of `group_sequences`, so a mean over ranks must be
    weighted by tokens. A batch has at most `micro_batch` sequences, or one group more if the set cannot be divided
    evenly. `sequence_ids` are the windows' numbers. Raises DataError if there is no group for every rank.
    """
    num_windows = _num_windows(tokens, sequence_length)
    num_groups = min(num_sequences, num_windows) // group_sequences
    if num_groups < data_degree:
        raise DataError(
            f"data.validation_sequences={num_sequences}: the {len(tokens.tokens)} validation tokens make "
            f"{num_windows} sequences of data.sequence_length={sequence_length}, which are only {num_groups} "
            f"groups of moe.group_sequences={group_sequences} for {data_degree} workers; "
            "raise data.validation_sequences or data.validation_fraction, or use shorter sequences"
        )
    count = num_groups * group_sequences
    evenly_spread = np.arange(count, dtype=np.int64) * num_windows // count
    return [
        make_batch(_windows(tokens, sequence_length, windows), torch.from_numpy(windows))
        for windows in rank_batches(evenly_spread, data_rank, data_degree, micro_batch, group_sequences)
    ]


def rank_batches(
    sequences: NDArray[np.int64], data_rank: int, data_degree: int, micro_batch: int, group_sequences: int
) -> Iterator[NDArray[np.int64]]:
    """Yields rank `data_rank`'s batches of a validation set's `sequences`, divided as `validation_batches` promises."""
    groups = sequences.reshape(-1, group_sequences)
    groups_per_round = max(micro_batch // group_sequences, 1) * data_degree
    num_rounds = min(-(-len(groups) // groups_per_round), len(groups) // data_degree)
    for part in np.array_split(groups, num_rounds):
        yield np.array_split(part, data_degree)[data_rank].ravel()


def _num_windows(tokens: IndexedTokens, sequence_length: int) -> int:
    """Counts windows of sequence_length + 1 tokens, each beginning with the last token of the one before."""
    return max(len(tokens.tokens) - 1, 0) // sequence_length


def _windows(
    tokens: IndexedTokens, sequence_length: int, windows: NDArray[np.int64]
) -> Int[Tensor, "B S_plus_1"]:
    """Copies `windows` from the stream."""
    places = windows[:, None] * sequence_length + np.arange(sequence_length + 1)
    return torch.from_numpy(tokens.tokens[places].astype(np.int64))
