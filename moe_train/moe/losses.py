"""Computes auxiliary losses of routers, each a pure function of logits and choices.

Losses of tokens (z, entropy) are means over routing groups of equal size. A balance loss is one of sums over a set of
tokens (`SetLoss`): a sequence, a routing group or the global batch, as `moe.router.balance_over` says, and a mean over
sets. So the mean over microbatches and ranks is the value of the global batch on every layout; where the batch is one
set, `whole_batch.py` makes it so. Where there is padding (`is_real` is false), or places have no row (rows.py), a set's
share or mean is that of its real tokens, and one without any counts as 0.
T tokens (rows), G groups or sets, E experts, K choices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.moe.counts import counts_of
from moe_train.moe.rows import Rows
from moe_train.results import SetLoss


def watched(values: Float[Tensor, "*S"], coefficient: float) -> Float[Tensor, "*S"]:
    """Returns `values` for a loss with this coefficient: at 0 it is only reported, and costs no backward pass."""
    return values if coefficient else values.detach()


def mean_or_zero(values: Float[Tensor, "G ..."]) -> Float[Tensor, ""]:
    """Returns the mean of all values; 0 where there are none, of which torch's mean is NaN."""
    return values.mean() if len(values) else values.sum()


@dataclass(frozen=True)
class TokenSets:
    """Sets of tokens: those in each of which a balance loss asks for even loads, or the routing groups."""

    size: int | None
    """Places of a set; None: all tokens of the global batch are one, and those at hand are a part of it."""
    is_real: Bool[Tensor, " T"] | None = None
    rows: Rows | None = None
    """None: the rows are full."""

    @classmethod
    def of(cls, over: Literal["sequence", "group", "batch"], group: int, rows: Rows) -> "TokenSets":
        """Makes the sets that `moe.router.balance_over` names, with `group` sequences in a routing group."""
        sizes = {"sequence": rows.length, "group": group * rows.length, "batch": None}
        return cls(sizes[over], rows.real, None if rows.is_full else rows)

    @property
    def are_whole(self) -> bool:
        """Returns whether every set has all its tokens: none is padding or has no row."""
        return self.is_real is None and self.rows is None

    def totals(self, values: Float[Tensor, "T E"]) -> Float[Tensor, "G E"]:
        """Returns the sum over each set's (real) tokens."""
        if self.is_real is not None:
            values = values * self.is_real.unsqueeze(1)
        if self.size is None:
            return values.sum(0, keepdim=True)
        by_place = values if self.rows is None else self.rows.lay_out(values).flatten(0, 1)
        return by_place.unflatten(0, (-1, self.size)).sum(1)

    def mean(self, values: Float[Tensor, " T"]) -> Float[Tensor, ""]:
        """Returns the mean over (real) tokens. Where some sets are not whole, it is the mean of the sets' means."""
        if self.are_whole:
            return values.sum() / max(len(values), 1)
        totals = self.totals(values.unsqueeze(1))
        return mean_or_zero(totals / self.num_tokens(len(values), values).clamp(min=1))

    def counts(self, expert_ids: Int[Tensor, "T K"], num_experts: int) -> Int[Tensor, "G E"]:
        """Returns how many of each set's (real) tokens go to each expert."""
        tokens, choices = expert_ids.shape
        edges = expert_ids.reshape(-1)
        num_sets = 1
        if self.size is not None and self.rows is None:
            num_sets = tokens // self.size
            sets = torch.arange(num_sets, device=edges.device).repeat_interleave(self.size * choices)
            edges = sets * num_experts + edges
        elif self.size is not None and self.rows is not None:
            num_sets = self.rows.values.numel() // self.size
            places = self.rows.places_of(torch.arange(tokens, device=edges.device))
            edges = (places // self.size).repeat_interleave(choices) * num_experts + edges
        is_counted = None if self.is_real is None else self.is_real.repeat_interleave(choices)
        return counts_of(edges, num_sets * num_experts, is_counted).view(num_sets, num_experts)

    def num_tokens(self, tokens: int, like: Float[Tensor, "..."]) -> Float[Tensor, "G 1"]:
        """Returns how many of `tokens` tokens (real ones) each set has, in the precision of `like`."""
        if self.is_real is not None:
            return self.totals(self.is_real.unsqueeze(1).to(like.dtype))
        if self.rows is not None:
            return self.totals(like.new_ones(tokens, 1))
        sets, size = (1, tokens) if self.size is None else (tokens // self.size, self.size)
        return like.new_full((sets, 1), size)

    def loss(
        self, totals: Float[Tensor, "G N"], of_totals: Callable[[Float[Tensor, "G N"]], Float[Tensor, ""]]
    ) -> SetLoss:
        """Returns the loss `of_totals(totals)`, a mean over sets; a set's totals are the sums of those of its parts."""
        return SetLoss(totals, of_totals, is_part=self.size is None)


def balance_loss(
    probabilities: Float[Tensor, "T E"], expert_ids: Int[Tensor, "T K"], sets: TokenSets
) -> SetLoss:
    """Returns E * sum_i f_i * P_i, a mean over sets   # Switch (2101.03961) eq. 4-6.

    f_i: share of the set's assignments that go to expert i, before the capacity limit, without gradient.
    P_i: mean probability of expert i in the set. 1 when both are uniform, up to E at full collapse; it can
    be below 1 (f = (.9, .1) with P = (.45, .55) gives 0.92).
    """
    tokens, experts = probabilities.shape
    counts = sets.counts(expert_ids, experts).to(probabilities.dtype)
    sums = sets.totals(probabilities)
    totals = torch.cat((counts, sums, sets.num_tokens(tokens, sums)), dim=1)
    return sets.loss(totals, partial(share_times_probability, choices=expert_ids.shape[1]))


def share_times_probability(totals: Float[Tensor, "G N"], choices: int) -> Float[Tensor, ""]:
    """Returns E * sum_i f_i * P_i of experts' tokens, experts' probabilities and all tokens, summed over a set."""
    experts = totals.shape[1] // 2
    counts, sums, tokens = totals.split((experts, experts, 1), dim=1)
    tokens = tokens.clamp(min=1)
    return experts * mean_or_zero((counts / (tokens * choices) * (sums / tokens)).sum(1))


def z_loss(logits: Float[Tensor, "T E"], groups: TokenSets | None = None) -> Float[Tensor, ""]:
    """Returns mean_t (logsumexp_i z_ti)^2   # ST-MoE (2202.08906) eq. 5."""
    return (groups or TokenSets(1)).mean(torch.logsumexp(logits, dim=-1).square())


def entropies(log_probabilities: Float[Tensor, "T E"]) -> Float[Tensor, " T"]:
    """Returns the entropy of each row in nats, -sum_i p_i ln p_i, with a finite gradient where some p_i underflows.

    Of p itself the derivative, -(ln p + 1), is infinite there; of ln p it is -p (ln p + 1), which vanishes with p.
    """
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def active_balance_loss(
    weights: Float[Tensor, "T E"], active: Bool[Tensor, "T E"], sets: TokenSets
) -> SetLoss:
    """Returns E * sum_i mean_t(w_ti) * mean_t(i is active for t), a mean over sets   # EvoMoE (2112.14397), code.

    There w_ti is 0 in training where i is not active; here it is what the gate gives i, as in Switch. With one active
    expert per token this is `balance_loss`; with all of them and weights that sum to 1 it is E.
    """
    sums = sets.totals(weights)
    totals = torch.cat(
        (sets.totals(active.to(weights.dtype)), sums, sets.num_tokens(len(weights), sums)), dim=1
    )
    return sets.loss(totals, partial(share_times_probability, choices=1))


def cv_squared(totals: Float[Tensor, "G E"]) -> Float[Tensor, ""]:
    """Returns var_i / mean_i^2, a mean over sets   # Shazeer et al. (1701.06538) eq. 6-11; population variance."""
    mean = totals.mean(1, keepdim=True)
    return mean_or_zero((totals - mean).square().mean(1, keepdim=True) / (mean.square() + 1e-10))
