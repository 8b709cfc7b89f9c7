"""Estimates how many rows a layer sends to experts and receives for its own, before any token is routed.

Of a rank's tokens the layer keeps what the router chooses and the capacity limit leaves at an even load. What a rank
receives is `imbalance` times the mean over ranks, up to what the limit lets its experts accept.
"""

from dataclasses import dataclass

from moe_train.config.capacity import capacity
from moe_train.config.spec import MoESpec


@dataclass(frozen=True)
class ExpectedRows:
    """Holds rows per token of a rank, in training."""

    kept: float
    """Edges that the rank sends, of which each is a row."""
    accepted: float
    """The most that all experts of the layer together accept; infinite without a capacity limit."""

    def sent(self, tokens: int) -> int:
        """Returns the rows of a rank with `tokens` tokens."""
        return int(tokens * self.kept)

    def received(self, tokens: int, imbalance: float = 1.0) -> int:
        """Returns the rows for the experts of a rank, if every rank has `tokens` tokens."""
        return min(int(tokens * self.kept * imbalance), int(min(tokens * self.accepted, 2**62)))


def expected_rows(moe: MoESpec, length: int) -> ExpectedRows:
    """Returns the expectation for a layer of sequences of `length` tokens."""
    chosen = float(moe.router.experts_per_token(moe.num_experts, length))
    if moe.capacity_factor is None:
        return ExpectedRows(chosen, float("inf"))
    tokens = moe.group_sequences * length
    slots = capacity(
        moe.capacity_convention,
        moe.capacity_factor,
        tokens,
        moe.num_experts,
        moe.router.num_choices,
        moe.min_capacity,
    )
    accepted = slots * moe.num_experts / tokens
    return ExpectedRows(min(chosen, accepted), accepted)


def evenly(total: int, parts: int) -> list[int]:
    """Divides `total` into `parts` numbers that differ by at most 1, the larger ones first."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]
