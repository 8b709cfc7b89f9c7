"""Implements the dense feed-forward block, without biases. D model width, F hidden width."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.spec import GATED


class FeedForward(nn.Module):
    """Computes relu or gelu between two matrices, or swiglu or geglu (2002.05202) with a third, `w_gate`."""

    def __init__(self, d_model: int, d_ff: int, activation: str):
        super().__init__()
        self.activation = activation
        self.w_in = nn.Linear(d_model, d_ff, bias=False)
        self.w_gate = nn.Linear(d_model, d_ff, bias=False) if activation in GATED else None
        self.w_out = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Returns the block's output; the residual is added outside."""
        hidden = self.w_in(x)
        if self.w_gate is not None:
            gate = F.silu if self.activation == "swiglu" else F.gelu
            return self.w_out(gate(self.w_gate(x)) * hidden)
        return self.w_out(F.relu(hidden) if self.activation == "relu" else F.gelu(hidden))
