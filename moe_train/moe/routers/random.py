"""Routes every token to a random expert, drawn anew at each step: the baseline of learned routing.

Uniform over the experts, independent of the token; weight 1, so that nothing here has a gradient. In validation
the draw is that of one fixed seed and step: always the same for a sequence, as nothing may be random there.
T tokens, D model width.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router.random import RandomRouterConfig
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouteContext, Routing
from moe_train.random import RandomStream


class RandomRouter(nn.Module):
    """Routes each token to one random expert."""

    def __init__(self, config: RandomRouterConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        self.num_experts, self.site = num_experts, site

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Draws an expert for every token."""
        if not context.training:
            context = replace(context, forward_pass=replace(context.forward_pass, random=RandomStream(0, 0)))
        draws = context.uniform(f"{self.site}.expert").unsqueeze(1)
        expert_ids = (draws * self.num_experts).long()
        return table_routing(expert_ids, torch.ones_like(draws), self.num_experts)
