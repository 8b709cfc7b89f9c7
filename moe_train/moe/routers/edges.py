"""Makes edges from a table of choices or of weights. T tokens, E experts, K choices."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.moe.routing import RouterFigures, Routing
from moe_train.results import Policy, SetLoss

Loss = Float[Tensor, ""] | SetLoss


def table_routing(
    expert_ids: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
    num_experts: int,
    *,
    priority: Float[Tensor, " T"] | None = None,
    figures: RouterFigures | None = None,
    losses: Mapping[str, Loss] | None = None,
    coefficients: Mapping[str, float] | None = None,
    alternatives: bool = False,
    normalize_kept: bool = False,
    policy: Policy | None = None,
) -> Routing:
    """Routes each token to the K experts of its row, the first choice first: edges by token, then by choice."""
    tokens, choices = expert_ids.shape
    index = torch.arange(tokens * choices, device=expert_ids.device)
    return Routing(
        token_ids=index // choices,
        expert_ids=expert_ids.reshape(-1),
        choices=index % choices,
        weights=weights.reshape(-1),
        num_tokens=tokens,
        num_experts=num_experts,
        num_choices=choices,
        priority=priority,
        figures=figures,
        **_by_set(losses or {}),
        coefficients=coefficients or {},
        alternatives=alternatives,
        normalize_kept=normalize_kept,
        policy=policy,
    )


def masked_routing(
    weights: Float[Tensor, "T E"],
    active: Bool[Tensor, "T E"],
    *,
    num_choices: int | None = None,
    figures: RouterFigures | None = None,
    losses: Mapping[str, Loss] | None = None,
    coefficients: Mapping[str, float] | None = None,
) -> Routing:
    """Routes each token to the experts where `active` is true, however many: the largest weight is its first choice.

    `num_choices` is the most that a token can have; None: all experts.
    """
    tokens, experts = weights.shape
    token_ids, expert_ids = active.nonzero(as_tuple=True)
    places = token_ids * experts + expert_ids
    places = places[_by_token_and_weight(token_ids, weights.detach().flatten()[places])]
    counts = active.sum(1)
    starts = counts.cumsum(0) - counts
    return Routing(
        token_ids=token_ids,
        expert_ids=places % experts,
        choices=torch.arange(len(places), device=places.device) - starts[token_ids],
        weights=weights.flatten().gather(0, places),
        num_tokens=tokens,
        num_experts=experts,
        num_choices=num_choices or experts,
        figures=figures,
        **_by_set(losses or {}),
        coefficients=coefficients or {},
    )


def _by_set(losses: Mapping[str, Loss]) -> dict[str, Any]:
    """Returns `losses` and `batch_losses` of a `Routing`."""
    sets = {name: loss for name, loss in losses.items() if isinstance(loss, SetLoss)}
    return {
        "losses": {**losses, **{name: loss.value for name, loss in sets.items()}},
        "batch_losses": {name: loss for name, loss in sets.items() if loss.is_part},
    }


def _by_token_and_weight(token_ids: Int[Tensor, " N"], weights: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Returns the order of edges by token, then by falling weight, by one stable sort."""
    bits = weights.view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the numbers, negative ones too
    return (token_ids * 2**32 - bits).argsort(stable=True)
