"""Draws noise that routers add to their logits: a function of seed, step, site and sequence, see random.py.

T tokens, E experts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.moe.routing import RouteContext


def gumbel(num_experts: int, site: str, context: RouteContext) -> Float[Tensor, "T E"]:
    """Draws standard Gumbel numbers, -ln(-ln U): the argmax of logits plus these is a draw from their softmax."""
    draws = context.uniform(f"{site}.gumbel", num_experts)
    # A draw of exactly 0 (one in 2^24) would be -infinity.
    exponential = torch.log1p(-draws).neg_().clamp_(min=2.0**-25)
    return exponential.log_().neg_()


def normal(num_experts: int, site: str, context: RouteContext) -> Float[Tensor, "T E"]:
    """Draws standard normal numbers, by Box and Muller's transformation."""
    draws = context.uniform(f"{site}.normal", num_experts, 2)
    radius = torch.log1p(-draws[..., 0]).mul_(-2).sqrt_()
    return radius * torch.cos(draws[..., 1] * (2 * torch.pi))
