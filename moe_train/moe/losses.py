"""Auxiliary losses of routers, each a pure function of logits and choices.

All are means over routing groups of equal size, so that the mean over microbatches and ranks is the value of the
global batch on every layout. Where there is padding (`is_real` is false), a group's or a sequence's share or mean is
that of its real tokens, and one without any counts as 0.
G groups, S tokens in a group, E experts, K choices.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def watched(values: Float[Tensor, "*S"], coefficient: float) -> Float[Tensor, "*S"]:
    """`values` for a loss with this coefficient: at 0 it is there to be seen alone, and costs no backward pass."""
    return values if coefficient else values.detach()


def mean_or_zero(values: Float[Tensor, "G ..."]) -> Float[Tensor, ""]:
    """The mean of all values; 0 where there are none, of which torch's mean is NaN."""
    return values.mean() if len(values) else values.sum()


def balance_loss(
    probabilities: Float[Tensor, "T E"],
    expert_ids: Int[Tensor, "T K"],
    group_tokens: int,
    is_real: Bool[Tensor, " T"] | None = None,
) -> Float[Tensor, ""]:
    """E * sum_i f_i * P_i, a mean over groups   # Switch (2101.03961) eq. 4-6.

    f_i: share of the group's assignments that go to expert i, before the capacity limit, without gradient.
    P_i: mean probability of expert i in the group. 1 when both are uniform, up to E at full collapse; it can
    be below 1 (f = (.9, .1) with P = (.45, .55) gives 0.92).
    """
    tokens, experts = probabilities.shape
    groups, choices = tokens // group_tokens, expert_ids.shape[1]
    group = torch.arange(groups, device=expert_ids.device).repeat_interleave(group_tokens * choices)
    edges = group * experts + expert_ids.reshape(-1)
    if is_real is not None:
        edges = edges[is_real.repeat_interleave(choices)]
    counts = torch.bincount(edges, minlength=groups * experts)
    counts = counts.view(groups, experts).to(probabilities.dtype)
    assigned = group_tokens * choices if is_real is None else counts.sum(1, keepdim=True).clamp(min=1)
    share, mean_probability = counts / assigned, group_means(probabilities, group_tokens, is_real)
    return experts * mean_or_zero((share * mean_probability).sum(1))


def group_means(
    values: Float[Tensor, "T E"], group_tokens: int, is_real: Bool[Tensor, " T"] | None = None
) -> Float[Tensor, "G E"]:
    """The mean over each group's (real) tokens."""
    if is_real is None:
        return values.unflatten(0, (-1, group_tokens)).mean(1)
    return group_totals(values, group_tokens, is_real) / is_real.view(-1, group_tokens, 1).sum(1).clamp(min=1)


def group_totals(
    values: Float[Tensor, "T E"], group_tokens: int, is_real: Bool[Tensor, " T"] | None = None
) -> Float[Tensor, "G E"]:
    """The sum over each group's (real) tokens."""
    if is_real is not None:
        values = values * is_real.unsqueeze(1)
    return values.unflatten(0, (-1, group_tokens)).sum(1)


def token_mean(
    values: Float[Tensor, " T"], group_tokens: int, is_real: Bool[Tensor, " T"] | None = None
) -> Float[Tensor, ""]:
    """The mean over (real) tokens. Groups matter only where there is padding: then it is the mean of their means."""
    if is_real is None:
        return values.sum() / max(len(values), 1)
    return mean_or_zero(group_means(values.unsqueeze(1), group_tokens, is_real))


def z_loss(
    logits: Float[Tensor, "T E"], group_tokens: int = 1, is_real: Bool[Tensor, " T"] | None = None
) -> Float[Tensor, ""]:
    """mean_t (logsumexp_i z_ti)^2   # ST-MoE (2202.08906) eq. 5."""
    return token_mean(torch.logsumexp(logits, dim=-1).square(), group_tokens, is_real)


def entropies(log_probabilities: Float[Tensor, "T E"]) -> Float[Tensor, " T"]:
    """The entropy of each row in nats, -sum_i p_i ln p_i, with a finite gradient where some p_i underflows.

    Of p itself the derivative, -(ln p + 1), is infinite there; of ln p it is -p (ln p + 1), which vanishes with p.
    """
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def active_balance_loss(
    weights: Float[Tensor, "T E"],
    active: Bool[Tensor, "T E"],
    group_tokens: int,
    is_real: Bool[Tensor, " T"] | None = None,
) -> Float[Tensor, ""]:
    """E * sum_i mean_t(w_ti) * mean_t(i is active for t), a mean over groups   # EvoMoE (2112.14397), code.

    There w_ti is 0 where i is not active; here it is what the gate gives i all the same, as in Switch. With one active
    expert per token this is `balance_loss`; with all of them and weights that sum to 1 it is E.
    """
    share = group_means(active.to(weights.dtype), group_tokens, is_real)
    return weights.shape[1] * mean_or_zero((share * group_means(weights, group_tokens, is_real)).sum(1))


def cv_squared(totals: Float[Tensor, "G E"]) -> Float[Tensor, ""]:
    """var_i / mean_i^2, a mean over groups   # Shazeer et al. (1701.06538) eq. 6-11; population variance."""
    mean = totals.mean(1, keepdim=True)
    return mean_or_zero((totals - mean).square().mean(1, keepdim=True) / (mean.square() + 1e-10))
