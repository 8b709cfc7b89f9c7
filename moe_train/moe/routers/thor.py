"""Implements THOR, which has no router: in every forward pass a layer draws one expert for all tokens.

Zuo et al., 2110.04260, sec. 3, and the authors' code: an update makes two passes over its batch (see
objectives/consistency.py), each with a draw of its own for every layer, and the two may coincide (the paper speaks of
a random pair). The whole global batch shares the draw, so every layout and accumulation makes the same one.
Validation: `sequence` draws an expert for each sentence in each layer, as the paper and the code's level 1 do; `token`
draws one for each token (the code's level 0), `batch` one for all sentences, as in training; `ensemble` weighs all
experts equally; `fixed` uses one in every layer. These draws depend only on the layer, the sequence's number and, for
`token`, the position. So validation repeats exactly, and a sentence keeps its experts while it is being translated.
T tokens, D model width, E experts, B sequences, S tokens of one.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_train.config.kinds.router.thor import ThorRouterConfig
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouteContext, Routing
from moe_train.moe.rows import Rows
from moe_train.random import RandomStream


class ThorRouter(nn.Module):
    """Uses one expert per layer and pass, with weight 1."""

    def __init__(self, config: ThorRouterConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        self.config, self.num_experts, self.site = config, num_experts, site

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Sends all tokens to the expert that was drawn; in validation, follows `inference`."""
        tokens, rows = x.shape[0], context.rows
        if not context.training and self.config.inference == "ensemble":
            every = torch.arange(self.num_experts, device=x.device).expand(tokens, -1)
            weights = torch.full(every.shape, 1 / self.num_experts, device=x.device)
            return table_routing(every, weights, self.num_experts)
        random = context.forward_pass.random
        expert_ids = self._of_batch(random, rows) if context.training else self._chosen(rows)
        per_token = rows.take(expert_ids.expand_as(rows.values)).unsqueeze(1)
        return table_routing(per_token, torch.ones(tokens, 1, device=x.device), self.num_experts)

    def _of_batch(self, random: RandomStream, rows: Rows) -> Int[Tensor, "B 1"]:
        """Draws one expert for all sequences of the step."""
        draw = random.uniform_of_batch(f"{self.site}.expert", rows.values.device)
        return (draw * self.num_experts).long().expand(len(rows.sequence_ids), 1)

    def _chosen(self, rows: Rows) -> Int[Tensor, "B _"]:
        """Returns each sequence's expert in validation, or each token's."""
        numbers, inference = rows.sequence_ids, self.config.inference
        always = RandomStream(0, 0)
        if inference == "batch":
            return self._of_batch(always, rows)
        if inference == "fixed":
            return torch.full_like(numbers, self.config.fixed_expert).unsqueeze(1)
        num_draws = rows.length if inference == "token" else 1
        return (always.uniform(f"{self.site}.expert", numbers, num_draws) * self.num_experts).long()
