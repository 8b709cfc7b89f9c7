"""Defines routers that score experts by logits, which such a router returns in one place.

The contract (tests/unit/moe/test_router_contract.py) asks every router whose recipe is a `GateConfig` for `logits`,
`softmaxes` and `expert_logits`. A gate that is no matrix product, a cosine's for one, overrides `logits` alone.
T tokens, D model width, E experts, N outputs of a gate: for most one for each expert.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router.router import GateConfig
from moe_train.initial import Initial, Normal
from moe_train.moe.routers.scores import figures_of, gate_logits, jittered
from moe_train.moe.routing import RouteContext, RouterFigures


class GateRouter(nn.Module):
    """Is the base of routers with a matrix of logits, x W, and jitter of its input in training."""

    config: GateConfig

    def __init__(self, config: GateConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        self.config, self.num_experts, self.group, self.site = config, num_experts, group, site
        self.weight = nn.Parameter(torch.empty(d_model, num_experts))

    def initial(self, name: str) -> Initial:
        """Returns how the matrix begins. A logit has as many inputs as the model is wide."""
        return Normal(fan_in=self.weight.shape[0], scale=self.config.init_scale)

    def logits(self, x: Float[Tensor, "T D"], context: RouteContext) -> Float[Tensor, "T N"]:
        """Returns the gate's outputs in fp32 before any noise, for `forward`; call it with autocast off."""
        return context.run(self._logits, x, context)

    def _logits(self, x: Float[Tensor, "T D"], context: RouteContext) -> Float[Tensor, "T N"]:
        return gate_logits(jittered(x.float(), self.config.jitter, self.site, context), self.weight)

    def softmaxes(self, logits: Float[Tensor, "T N"]) -> Sequence[Float[Tensor, "T _"]]:
        """Returns the logits of each of its softmaxes; the z-loss is the sum of theirs."""
        return (logits,)

    def expert_logits(self, logits: Float[Tensor, "T N"]) -> Float[Tensor, "T E"]:
        """Returns a logit for each expert; `router_entropy` and `router_top_probability` are of their softmax."""
        return logits

    def figures(self, logits: Float[Tensor, "T N"], context: RouteContext) -> RouterFigures:
        """Returns the router's figures of the (real) tokens."""
        logits = logits.detach()
        return figures_of(self.expert_logits(logits), self.softmaxes(logits), context.rows.real)
