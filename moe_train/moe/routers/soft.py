"""Computes Soft MoE's weights: which tokens make up a slot, and which slots make up a token.

Puigcerver et al., 2308.00951, sec. 2, and google-research/vmoe's `soft_moe/router.py`: logits are scale * cos(x, phi)
of every token with every slot, scale a learned number that begins at 1; a slot is a mixture of all tokens of its
sequence by the softmax over tokens, a token a mixture of all slots' results by the softmax over slots. Nothing is
dropped, nothing is random, and there is no balance loss. phi is drawn with LeCun's variance, 1 / d. The code's optional
noise on the logits is not built. moe/layers/soft.py has the layer.
B sequences, S tokens of one, D model width, E experts, P slots of an expert, N = E * P slots, expert by expert.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router.soft import SoftRouterConfig
from moe_train.initial import Constant, Initial, Normal
from moe_train.moe.routers.scores import figures_of
from moe_train.moe.routing import RouteContext, RouterFigures

EPSILON = 1e-6
"""Added to squared norms, as in the code."""


class SlotWeights(NamedTuple):
    """Holds both mixtures, in fp32. A token that is padding or has no row is in no slot, and gets nothing."""

    dispatch: Float[Tensor, "B S N"]
    """Part of each token in a slot; sums to 1 over the real tokens of the sequence."""
    combine: Float[Tensor, "B S N"]
    """Part of each slot in a token; sums to 1 over slots."""
    figures: RouterFigures
    """Of the experts' parts in a token, an expert's being the sum of its slots'."""


class SoftRouter(nn.Module):
    """Turns tokens into both mixtures."""

    def __init__(self, config: SoftRouterConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        del group, site  # each sequence by itself, and nothing is random
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.empty(d_model, num_experts * config.slots_per_expert))
        self.scale = nn.Parameter(torch.empty(1))

    def initial(self, name: str) -> Initial:
        """Returns how the slots' vectors, of which only the directions matter, and their scale begin."""
        return Normal(fan_in=self.weight.shape[0], scale=1.0) if name == "weight" else Constant(1.0)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> SlotWeights:
        """Returns both mixtures of every sequence."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = _unit(x.float(), dim=1)
            by_row = tokens @ (self.scale * _unit(self.weight, dim=0))
            logits = context.rows.lay_out(by_row)
            combine = torch.softmax(logits, dim=2)
            by_slot = by_row.detach()
            of_experts = by_slot.unflatten(1, (self.num_experts, -1)).logsumexp(2)
            figures = figures_of(of_experts, (by_slot,), context.rows.real)
            if (occupied := context.rows.occupied) is None:
                return SlotWeights(torch.softmax(logits, dim=1), combine, figures)
            padding = ~occupied.unsqueeze(2)
            # A sequence of padding alone, or without rows, has no token to share out: its softmax is 0 / 0.
            dispatch = torch.softmax(logits.masked_fill(padding, -torch.inf), dim=1).masked_fill(padding, 0.0)
            return SlotWeights(dispatch, combine.masked_fill(padding, 0.0), figures)


def _unit(vectors: Float[Tensor, "A B"], dim: int) -> Float[Tensor, "A B"]:
    """Scales vectors along `dim` to length 1."""
    return vectors * torch.rsqrt(vectors.square().sum(dim, keepdim=True) + EPSILON)
