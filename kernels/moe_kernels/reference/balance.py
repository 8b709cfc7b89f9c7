"""Load balancing in plain torch: the capacity limit, the balance loss, the bias update of loss-free balancing.

T tokens, K choices, E experts, G groups of consecutive tokens.
"""

import torch
from torch import Tensor


def limit_capacity(
    expert_ids: Tensor, priorities: Tensor | None, num_experts: int, group_tokens: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns kept expert ids [T, K], positions [T, K], drops [G, E]: moe_limit_capacity in csrc/interface.h."""
    num_tokens, num_choices = expert_ids.shape
    num_groups = -(-num_tokens // group_tokens)
    served = _order_of_tokens(priorities, num_tokens, group_tokens, expert_ids.device)
    group = served // group_tokens
    choices = torch.arange(num_choices, device=expert_ids.device)
    edges = (served.unsqueeze(1) * num_choices + choices).flatten()
    turn = (group.unsqueeze(1) * num_choices + choices).flatten()  # group by group, choice by choice
    edges = edges[turn.argsort(stable=True)]
    flat_ids = expert_ids.flatten().long()
    queue = torch.where(
        flat_ids < 0,
        num_groups * num_experts,  # edges that are none stand in a queue of their own
        torch.arange(num_tokens * num_choices, device=expert_ids.device)
        // (group_tokens * num_choices)
        * num_experts
        + flat_ids,
    )
    positions = _places(queue, edges).masked_fill(flat_ids < 0, -1)
    dropped = positions >= capacity
    drops = torch.bincount(queue[dropped], minlength=num_groups * num_experts)
    kept = flat_ids.masked_fill(dropped, -1)
    return (
        kept.int().view_as(expert_ids),
        positions.int().view_as(expert_ids),
        drops.int().view(num_groups, num_experts),
    )


def balance_loss(loads: Tensor, importance: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Returns E * sum_i f_i * P_i [] with its derivative by importance [E]   # Switch (2101.03961) eq. 4.

    f_i = loads_i / sum(loads), without gradient; P_i = importance_i / num_tokens. 0 without loads or tokens.
    """
    share = loads / loads.sum().clamp(min=1).to(importance.dtype)
    slopes = loads.shape[0] * share / max(num_tokens, 1) * (num_tokens > 0)
    return (slopes * importance).sum(), slopes


def update_bias(bias: Tensor, loads: Tensor, rate: float) -> Tensor:
    """Returns bias_i + rate * sign(mean(loads) - loads_i)   # loss-free balancing (2408.15664) alg. 1."""
    loads = loads.long()
    return bias + rate * (loads.sum() - loads.shape[0] * loads).sign()


def _order_of_tokens(
    priorities: Tensor | None, num_tokens: int, group_tokens: int, device: torch.device
) -> Tensor:
    """Orders tokens by group, within it by falling priority, then by position."""
    if priorities is None:
        return torch.arange(num_tokens, device=device)
    by_priority = priorities.argsort(descending=True, stable=True)  # NaN counts as the largest
    return by_priority[(by_priority // group_tokens).argsort(stable=True)]


def _places(queue: Tensor, edges: Tensor) -> Tensor:
    """Returns the position of each edge in its queue, where queues fill in the order of `edges`."""
    by_queue = edges[queue[edges].argsort(stable=True)]
    lengths = torch.bincount(queue)
    starts = lengths.cumsum(0) - lengths
    places = torch.empty_like(queue)
    places[by_queue] = torch.arange(queue.numel(), device=queue.device) - starts[queue[by_queue]]
    return places
