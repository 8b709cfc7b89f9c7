"""THOR: no router at all. In every forward pass a layer draws one expert, and all tokens go to it.

Zuo et al., 2110.04260, sec. 3, and the authors' code: an update makes two passes over its batch (see
objectives/consistency.py), each with a draw of its own for every layer, and the two may coincide (the paper speaks of
a random pair). The draw is shared by the whole global batch, so every layout and accumulation makes the same one.
Validation: `sequence` gives the i-th sequence expert i modulo E, where the code draws one per sentence (its level 1);
`token` draws one for each token (its level 0), `batch` one for all, as in training; `ensemble` weighs all experts
equally; `fixed` uses one in every layer. Draws there depend on the layer, the sequence's number and the token's
position alone: so validation repeats exactly, and a token keeps its expert while others are written after it.
T tokens, D model width, E experts, B sequences, S tokens of one.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_train.config.kinds.router import ThorRouterConfig
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouteContext, Routing
from moe_train.random import RandomStream


class ThorRouter(nn.Module):
    """One expert per layer and pass, with weight 1."""

    def __init__(self, config: ThorRouterConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        self.config, self.num_experts, self.site = config, num_experts, site

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Send all tokens to the expert that was drawn; in validation as `inference` says."""
        tokens = x.shape[0]
        if not context.training and self.config.inference == "ensemble":
            every = torch.arange(self.num_experts, device=x.device).expand(tokens, -1)
            weights = torch.full(every.shape, 1 / self.num_experts, device=x.device)
            return table_routing(every, weights, self.num_experts)
        expert_ids = self._of_batch(context.random) if context.training else self._chosen(context)
        per_token = expert_ids.expand(context.token_values.shape).reshape(-1, 1)
        return table_routing(per_token, torch.ones(tokens, 1, device=x.device), self.num_experts)

    def _of_batch(self, stream: RandomStream) -> Int[Tensor, "B 1"]:
        """The same draw for every sequence of the step."""
        draw = stream.uniform_of_batch(f"{self.site}.expert")
        return (draw * self.num_experts).long().expand(len(stream.sequence_ids), 1)

    def _chosen(self, context: RouteContext) -> Int[Tensor, "B _"]:
        """Each sequence's expert in validation, or each token's."""
        numbers, inference = context.random.sequence_ids, self.config.inference
        always = RandomStream(0, 0, numbers)
        if inference == "token":
            draws = always.uniform(f"{self.site}.expert", context.sequence_length)
            return (draws * self.num_experts).long()
        if inference == "batch":
            return self._of_batch(always)
        if inference == "fixed":
            return torch.full_like(numbers, self.config.fixed_expert).unsqueeze(1)
        return (numbers % self.num_experts).unsqueeze(1)
