"""Computes router statistics in plain torch: scores, choices, loads, importance, z-loss, and their gradient.

T tokens, E experts, K choices. Differentiable by autograd; `router_backward` is the same gradient written out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def router(
    logits: Tensor, bias: Tensor | None, num_choices: int, score: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns scores [T, E], expert ids [T, K], weights [T, K], log sum exp [T], loads [E], importance [E] and z [].

    As moe_router_forward in csrc/interface.h says, -inf logits included.
    """
    masked = logits == -torch.inf
    idle = masked.all(1)
    safe = logits.masked_fill(idle.unsqueeze(1), 0)  # a softmax over nothing has no value and no gradient
    scores = safe.softmax(1) if score == "softmax" else safe.sigmoid()
    scores = scores.masked_fill(idle.unsqueeze(1), 0)
    lse = safe.logsumexp(1).masked_fill(idle, 0)
    keys = (
        logits.detach() if bias is None else (scores.detach() + bias.detach()).masked_fill(masked, -torch.inf)
    )
    expert_ids = _best(keys, num_choices)
    weights = scores.gather(1, expert_ids.clamp(min=0)).masked_fill(expert_ids < 0, 0)
    loads = torch.bincount(expert_ids[expert_ids >= 0], minlength=logits.shape[1])
    return scores, expert_ids.int(), weights, lse, loads.int(), scores.sum(0), lse.square().sum()


def router_backward(
    grad_scores: Tensor | None,
    grad_weights: Tensor | None,
    grad_importance: Tensor | None,
    grad_z: Tensor | None,
    logits: Tensor | None,
    scores: Tensor,
    expert_ids: Tensor,
    lse: Tensor,
    score: str,
) -> Tensor:
    """Returns the gradient of the logits [T, E]. A softmax does not need the logits."""
    grad = torch.zeros_like(scores) if grad_scores is None else grad_scores.clone()
    if grad_importance is not None:
        grad += grad_importance
    if grad_weights is not None:
        chosen = expert_ids >= 0
        grad.scatter_add_(1, expert_ids.clamp(min=0).long(), grad_weights.masked_fill(~chosen, 0))
    pull = torch.zeros_like(lse) if grad_z is None else 2 * grad_z * lse
    if score == "softmax":
        mean = (grad * scores).sum(1)
        return scores * (grad + (pull - mean).unsqueeze(1))
    assert logits is not None
    return scores * (1 - scores) * grad + pull.unsqueeze(1) * (logits - lse.unsqueeze(1)).exp()


def _best(keys: Tensor, num_choices: int) -> Tensor:
    """Returns the largest keys of each row, largest first, the lower index where equal; -1 for -inf and for NaN."""
    keys = F.pad(
        keys.nan_to_num(-torch.inf, torch.inf, -torch.inf),
        (0, max(0, num_choices - keys.shape[1])),
        value=-torch.inf,
    )
    best = keys.sort(dim=1, descending=True, stable=True)
    return best.indices.masked_fill(best.values == -torch.inf, -1)[:, :num_choices]
