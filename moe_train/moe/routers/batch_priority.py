"""Implements V-MoE's router with batch-prioritised routing: full experts serve the most certain tokens first.

Riquelme et al., 2106.05974, sec. 2-4, and google-research/vmoe. p = softmax(x W + noise) with noise of standard
deviation 1 / E (as in the code) in training; the k largest of the noisy p, not renormalised. Losses: CV^2 of the
importance (sum of the clean softmax) and of the load (chance to be among the k: Phi((clean - k-th noisy logit) / std);
in validation the plain count), of the batch as in the paper, where the code takes each routing group. An expert takes
tokens by their largest p, as in the code, or by the sum of their k p, the paper's other score (sec. 4), all first
choices before any second. So a token's place depends on later tokens, and causal objectives refuse it.
Conventions: the load's formula is from memory.
T tokens, D model width, E experts, K choices.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.router.batch_priority import BatchPriorityRouterConfig
from moe_train.moe.losses import TokenSets, balance_loss, cv_squared, watched, z_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import normal
from moe_train.moe.routers.scores import largest
from moe_train.moe.routing import RouteContext, Routing


class BatchPriorityRouter(GateRouter):
    """Takes the k largest of a noisy softmax, in order of the tokens' largest gate or of their sum."""

    config: BatchPriorityRouterConfig

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to k experts."""
        with torch.autocast(x.device.type, enabled=False):
            clean = noisy = self.logits(x, context)
            deviation = self.config.noise / self.num_experts if context.training else 0.0
            if deviation > 0:
                noisy = clean + deviation * normal(self.num_experts, self.site, context)
            probabilities = torch.softmax(noisy, dim=1)
            weights, expert_ids = largest(probabilities.t().contiguous(), self.config.num_choices)
            chances = self._chances(clean, noisy, expert_ids, deviation)
            by_sum = self.config.priority == "sum"
            losses = self._losses(clean, chances, expert_ids, context)
        return table_routing(
            expert_ids,
            weights,
            self.num_experts,
            priority=weights.detach().sum(1) if by_sum else weights.detach()[:, 0],
            figures=self.figures(clean, context),
            losses=losses,
            coefficients={
                "importance": self.config.importance_coefficient,
                "load": self.config.load_coefficient,
                "balance": self.config.balance_coefficient,
                "z": self.config.z_coefficient,
            },
        )

    def _chances(
        self,
        clean: Float[Tensor, "T E"],
        noisy: Float[Tensor, "T E"],
        expert_ids: Int[Tensor, "T K"],
        deviation: float,
    ) -> Float[Tensor, "T E"]:
        """Returns each expert's chance to be among the k if its noise were drawn again; without noise, 0 or 1."""
        if deviation == 0:
            return torch.zeros_like(clean).scatter(1, expert_ids, 1.0)
        threshold = noisy.gather(1, expert_ids[:, -1:])
        return torch.special.ndtr((clean - threshold) / deviation)

    def _losses(
        self,
        clean: Float[Tensor, "T E"],
        chances: Float[Tensor, "T E"],
        expert_ids: Int[Tensor, "T K"],
        context: RouteContext,
    ) -> dict[str, Loss]:
        config = self.config
        sets = TokenSets.of(config.balance_over, self.group, context.rows)
        shares = torch.softmax(clean, dim=1)
        return {
            "importance": sets.loss(sets.totals(shares), cv_squared),
            "load": sets.loss(sets.totals(chances), cv_squared),
            "balance": balance_loss(watched(shares, config.balance_coefficient), expert_ids, sets),
            "z": z_loss(
                watched(clean, config.z_coefficient), TokenSets.of("group", self.group, context.rows)
            ),
        }
