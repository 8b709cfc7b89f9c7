"""Computes Sinkhorn's soft assignment of a group's tokens; the hard one, with the best total score, is moe_kernels'.

G groups side by side, S tokens of a group, E experts.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def sinkhorn_plan(
    scores: Float[Tensor, "G S E"],
    tolerance: float,
    max_iterations: int,
    is_real: Bool[Tensor, "G S"] | None = None,
) -> Float[Tensor, "G S E"]:
    """Scales rows and columns of exp(scores) so that each token has 1 / S and each expert 1 / E in total.

    Rows and columns take turns, until the columns' factors change by less than `tolerance`, relatively and on average:
    megatron-core's `sinkhorn`, in logarithms so that nothing overflows. Each group stops by itself, so the groups
    beside it do not matter. Rows of padding (`is_real` is false) are 0, and S is the number of the others.
    """
    if is_real is None:
        is_real = torch.ones_like(scores[:, :, 0], dtype=torch.bool)
    experts, padding = scores.shape[2], ~is_real.unsqueeze(2)
    log_tokens = is_real.sum(1).clamp(min=1).log().view(-1, 1, 1)
    columns = torch.zeros_like(scores[:, :1])
    moving = is_real.any(1).view(-1, 1, 1)
    for _ in range(max_iterations):
        rows = -log_tokens - (scores + columns).logsumexp(2, keepdim=True)
        rows = rows.masked_fill(padding, -torch.inf)
        scaled = -math.log(experts) - (scores + rows).logsumexp(1, keepdim=True)
        moved = (scaled - columns).abs().mean(2, keepdim=True)
        columns = torch.where(moving, scaled, columns)
        moving = moving & (moved > tolerance)
        if not bool(moving.any()):
            break
    rows = -log_tokens - (scores + columns).logsumexp(2, keepdim=True)
    return (rows + scores + columns).exp().masked_fill(padding, 0.0)
