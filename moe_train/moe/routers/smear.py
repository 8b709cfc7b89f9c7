"""Computes SMEAR's weights: the part of each expert in the one merged for a sequence or a segment of it.

Muqeeth et al., 2306.03745, sec. 3, and r-three/smear: the mean of a sequence's tokens and the experts' vectors are both
layer-normalised, the logits are their products times a learned gain that begins at 0.01, and p is their softmax. In
training each expert is left out of a merge with some probability and the others are rescaled; if all are left out, all
count the same. No balance loss.
The mean of a whole sequence holds its future. With `segment` a token's expert is made from the segment before its own,
as in Lory (2405.03133, sec. 3); the first segment has none before it and mixes all experts evenly, where Lory, as far
as we remember, takes that segment itself without gradient, which leaks. moe/layers/smear.py has the layer. In the
code the routers of a decoder take the mean of the encoder's states; that is not built, a stack pools its own tokens.
Conventions: the code also has offsets of both norms and a gain of the first; the gain here is the product of both.
B sequences, S tokens of one, G segments (one a sequence, or more), D model width, E experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from moe_train.config.kinds.router.smear import SmearRouterConfig
from moe_train.initial import Constant, Initial, Normal
from moe_train.moe.routers.scores import figures_of
from moe_train.moe.routing import RouteContext, RouterFigures
from moe_train.moe.rows import Rows

FLOOR = 1e-10
"""Added to every part before they are rescaled, as in the code."""


class Merges(NamedTuple):
    """Holds the parts from which each segment's expert is merged; a sequence's segments follow each other."""

    parts: Float[Tensor, "G E"]
    """Of each expert, in fp32; they sum to 1."""
    figures: RouterFigures
    """Of each token's parts before any expert is left out."""


class SmearRouter(nn.Module):
    """Turns tokens into the parts of the experts in each segment's own."""

    def __init__(self, config: SmearRouterConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        del group  # each sequence by itself
        self.config, self.site = config, site
        self.weight = nn.Parameter(torch.empty(d_model, num_experts))
        self.gain = nn.Parameter(torch.empty(d_model))

    def initial(self, name: str) -> Initial:
        """Returns how the experts' vectors and their gain begin."""
        return Normal(fan_in=self.weight.shape[0]) if name == "weight" else Constant(0.01)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Merges:
        """Returns the parts of every segment."""
        with torch.autocast(x.device.type, enabled=False):
            width = x.shape[1:]
            pooled = self._pooled(x.float(), context.rows).flatten(0, 1)
            experts = F.layer_norm(self.weight.t(), width) * self.gain
            logits = F.layer_norm(pooled, width) @ experts.t()
            of_tokens = self.of_tokens(logits.detach(), context.rows)
            figures = figures_of(of_tokens, (of_tokens,), context.rows.real)
            parts = torch.softmax(logits, dim=1)
            if not context.training or self.config.drop_experts == 0:
                return Merges(parts, figures)
            random, ids = context.forward_pass.random, context.rows.sequence_ids
            segments = self.num_segments(context.rows.length)
            draws = random.uniform(f"{self.site}.drop_experts", ids, segments, parts.shape[1])
            kept = draws.view_as(parts) >= self.config.drop_experts
            parts = parts * kept + FLOOR
            return Merges(parts / parts.sum(1, keepdim=True), figures)

    def of_tokens(self, values: Shaped[Tensor, "G ..."], rows: Rows) -> Shaped[Tensor, "T ..."]:
        """Returns each segment's value for each of its rows."""
        length = rows.length
        by_sequence = values.unflatten(0, (-1, self.num_segments(length)))
        return rows.take(by_sequence.repeat_interleave(self.config.segment or length, dim=1)[:, :length])

    def num_segments(self, length: int) -> int:
        """Returns the number of segments in a sequence of `length` tokens; the last may be shorter."""
        return -(-length // (self.config.segment or length))

    def _pooled(self, x: Float[Tensor, "T D"], rows: Rows) -> Float[Tensor, "B G D"]:
        """Returns the mean of the real tokens that decide on each segment; 0 where there is none."""
        by_place = rows.lay_out(x)
        real = torch.ones(by_place.shape[:2], device=x.device)
        if (occupied := rows.occupied) is not None:
            real = occupied.to(x.dtype)
            by_place = by_place * real.unsqueeze(2)
        size = self.config.segment or rows.length
        if self.config.segment is not None:
            # Only the segments before the last one decide on any, and those are whole.
            before = (self.num_segments(rows.length) - 1) * size
            by_place, real = (
                F.pad(part[:, :before], (0, 0) * (part.ndim - 2) + (size, 0)) for part in (by_place, real)
            )
        shape = (-1, size)
        return by_place.unflatten(1, shape).sum(2) / real.unflatten(1, shape).sum(2).clamp(min=1).unsqueeze(2)
