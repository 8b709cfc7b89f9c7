"""Implements multi-head attention to the own sequence, with the recipe's positions, or to an encoder's output.

Transformer-XL's positions stand in transformer_xl.py.

B sequences, S tokens, R tokens of what is attended to (S in self-attention), D model width, H heads, W width of a
head.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_train.config.spec import ModelSpec
from moe_train.initial import Initial, Normal
from moe_train.model.rotary import rotate
from moe_train.model.transformer_xl import DistanceScores

NUM_BUCKETS = 32
MAX_DISTANCE = 128
HIDDEN = -1e9
"""Added to the scores of padding. Finite, so that a sequence of padding alone gives no NaN."""


class Attention(nn.Module):
    """Computes softmax(q k^T / sqrt(W) + bias) v, then a projection; the matrices have no biases."""

    def __init__(self, spec: ModelSpec, *, is_causal: bool = True, reads_memory: bool = False):
        """With `reads_memory`, it attends to an encoder's output, which has no positions."""
        super().__init__()
        width, of_heads = spec.d_model, spec.attention_width
        self.head_width, self.is_causal, self.reads_memory = spec.head_width, is_causal, reads_memory
        self.rotary = spec.positions == "rotary" and not reads_memory
        self.distances = (
            DistanceScores(width, spec.num_heads, spec.head_width, is_causal=is_causal)
            if spec.positions == "transformer_xl" and not reads_memory
            else None
        )
        self.query = nn.Linear(width, of_heads, bias=False)
        self.key = nn.Linear(width, of_heads, bias=False)
        self.value = nn.Linear(width, of_heads, bias=False)
        self.output = nn.Linear(of_heads, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        bias: Float[Tensor, "#B #H #S R"] | None,
        memory: Float[Tensor, "B R D"] | None = None,
    ) -> Float[Tensor, "B S_of_rank D"]:
        """Attends to `memory`, or to the positions of `x` (only to this and earlier ones if it is causal).

        `bias` is added to the scores. In causal attention it holds -inf above the diagonal. Memory has no positions.
        With sequence parallelism `x` and `memory` arrive whole, and this worker's part of the result is returned.
        """
        read = x if memory is None else memory
        query, key, value = (
            project(rows).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for project, rows in ((self.query, x), (self.key, read), (self.value, read))
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        if self.distances is not None:
            query, scores = self.distances(query)
            bias = scores if bias is None else scores + bias
        mask = None if bias is None else bias.to(query.dtype)
        causal = self.is_causal and mask is None and memory is None
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(-2))


def hide_padding(is_real: Bool[Tensor, "B R"]) -> Float[Tensor, "B 1 1 R"]:
    """Returns the bias that keeps attention away from padding."""
    bias = torch.zeros(is_real.shape, device=is_real.device)
    return bias.masked_fill(~is_real, HIDDEN)[:, None, None]


def hide_later(length: int, device: torch.device) -> Float[Tensor, "1 1 S S"]:
    """Returns the bias that keeps each position from those after it."""
    return torch.full((1, 1, length, length), -math.inf, device=device).triu(1)


class RelativeBias(nn.Module):
    """Computes T5's bucketed relative position bias (1910.10683, sec. 2.1), one table for all layers of a stack."""

    def __init__(self, num_heads: int, *, is_causal: bool = True):
        super().__init__()
        self.is_causal = is_causal
        self.weight = nn.Parameter(torch.empty(NUM_BUCKETS, num_heads))

    def initial(self, name: str) -> Initial:
        """Returns how the table begins: as an embedding whose width is the number of heads."""
        return Normal(fan_in=self.weight.shape[1])

    def forward(self, length: int) -> Float[Tensor, "H S S"]:
        """Returns the bias of query position i on key position j; if it is causal, -inf where j is later."""
        positions = torch.arange(length, device=self.weight.device)
        distance = positions[:, None] - positions[None, :]
        buckets = bucket(distance) if self.is_causal else bucket_both_ways(distance)
        bias = F.embedding(buckets, self.weight).permute(2, 0, 1)
        return bias.masked_fill(distance < 0, -math.inf) if self.is_causal else bias


def bucket(distance: Int[Tensor, "S S"], num_buckets: int = NUM_BUCKETS) -> Int[Tensor, "S S"]:
    """Uses half of the buckets for exact distances from 0 on, the others logarithmically up to MAX_DISTANCE."""
    exact = num_buckets // 2
    past = distance.clamp(min=0)
    far = torch.log(past.clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact) * (num_buckets - exact)
    return torch.where(past < exact, past, (exact + far.long()).clamp(max=num_buckets - 1))


def bucket_both_ways(distance: Int[Tensor, "S S"]) -> Int[Tensor, "S S"]:
    """Follows T5's encoder: the first half of the buckets for this and earlier positions, the second for later ones."""
    half = NUM_BUCKETS // 2
    return bucket(distance.abs(), half) + half * (distance < 0)
