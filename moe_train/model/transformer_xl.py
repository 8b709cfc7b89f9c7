"""Implements Transformer-XL's relative positions (1901.02860, sec. 3.3): a term of the scores, different in each layer.

score_ij = (q_i + u) . k_j + (q_i + v) . (W_R r_(i-j)), over sqrt(W). r is the sinusoid of a distance, W_R a matrix, and
u and v take the place of the query's own position. The paper's memory of the segment before is not here.
B sequences, S tokens, M distances, D model width, H heads, W width of a head.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_train.initial import Constant, Initial


class DistanceScores(nn.Module):
    """Holds W_R, u and v of one layer."""

    def __init__(self, d_model: int, num_heads: int, head_width: int, *, is_causal: bool):
        super().__init__()
        self.d_model, self.head_width, self.is_causal = d_model, head_width, is_causal
        self.project = nn.Linear(d_model, num_heads * head_width, bias=False)  # W_R
        self.content_bias = nn.Parameter(torch.empty(num_heads * head_width))  # u
        self.distance_bias = nn.Parameter(torch.empty(num_heads * head_width))  # v

    def initial(self, name: str) -> Initial:
        """Initialises u and v to 0; the authors' code draws them with a deviation of 0.02."""
        return Constant(0.0)

    def forward(
        self, query: Float[Tensor, "B H S W"]
    ) -> tuple[Float[Tensor, "B H S W"], Float[Tensor, "B H S S"]]:
        """Returns the queries q + u, and what is added to their scores; if it is causal, -inf above the diagonal."""
        length = query.shape[-2]
        content, position = (
            query + bias.to(query.dtype).view(-1, 1, self.head_width)
            for bias in (self.content_bias, self.distance_bias)
        )
        # From the largest distance down, so that a later key stands further to the right, as `shift` expects.
        distances = torch.arange(length - 1, -1 if self.is_causal else -length, -1, device=query.device)
        keys = self.project(sinusoids(distances, self.d_model)).unflatten(-1, (-1, self.head_width))
        by_distance = position @ keys.to(query.dtype).permute(1, 2, 0)
        scores = shift(by_distance) / math.sqrt(self.head_width)
        if self.is_causal:
            later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return content, scores


def sinusoids(distances: Int[Tensor, " M"], d_model: int) -> Float[Tensor, "M D"]:
    """Returns sin, then cos of distance * 10000^(-2i/D), for i below D / 2   # Vaswani et al. (1706.03762) sec. 3.5"""
    half = d_model // 2
    rate = 10_000.0 ** (-torch.arange(half, device=distances.device, dtype=torch.float32) / half)
    angle = torch.outer(distances.float(), rate)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def shift(by_distance: Float[Tensor, "B H S M"]) -> Float[Tensor, "B H S S"]:
    """Shifts columns by distance, S - 1 first, to columns by key: entry (i, j) is that of the distance i - j.

    Row i must move S - 1 - i places to the left. With one column more, read as rows that are one shorter, each row
    begins one place later than the one before (appendix B). Distances that are not among the columns give entries
    without a meaning.
    """
    *outer, length, num_distances = by_distance.shape
    padded = F.pad(by_distance, (1, 0)).view(*outer, num_distances + 1, length)
    return padded[..., 1:, :].reshape(*outer, length, num_distances)[..., :length]
