"""Implements GShard's top-2 gate (2006.16668, alg. 1), as in lingvo's `Top2GatingOnLogits`; GLaM uses it too.

p = softmax(x W); e1 = argmax p; e2 by `second_expert`:
  all       the second largest
  random    the same, but used only if u < g2 / threshold, so with probability min(1, 2 g2) at threshold 0.5
  sampling  drawn from the softmax without e1, by adding Gumbel noise to its logits
g1 and g2 are divided by their sum before chance and capacity drop anything, which is lingvo's default: what is
kept may then sum to less than 1. With `normalize_after_limit` u is held against the plain g2, and what is kept sums
to 1. Unlike in lingvo, nothing is drawn in validation, where `random` and `sampling` are `all`.
The balance loss counts first choices only: (1/E) sum_e (c_e / S) m_e, times E^2 as in the code.
T tokens, D model width, E experts.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.config.kinds.router.gshard import GShardRouterConfig
from moe_train.moe.losses import TokenSets, balance_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import gumbel
from moe_train.moe.routers.scores import softmax_choice
from moe_train.moe.routing import RouteContext, Routing

EPSILON = 1e-9
"""Added to the sum of the two weights, as in lingvo."""


class GShardRouter(GateRouter):
    """Takes the best expert, and a second one that may be random."""

    config: GShardRouterConfig

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to one or two experts."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            groups = TokenSets.of("group", self.group, context.rows)
            sets = TokenSets.of(self.config.balance_over, self.group, context.rows)
            choice = softmax_choice(logits, 2, groups)
            expert_ids, weights = choice.expert_ids, choice.weights
            if context.training and self.config.second_expert == "sampling":
                expert_ids = self._sampled(logits.detach(), expert_ids[:, :1], context)
                weights = choice.probabilities.gather(1, expert_ids)
            if not self.config.normalize_after_limit:
                weights = weights / (weights.sum(1, keepdim=True) + EPSILON)
            losses: dict[str, Loss] = {
                "balance": balance_loss(choice.probabilities, expert_ids[:, :1], sets),
                "z": choice.z,
            }
        routing = table_routing(
            expert_ids,
            weights,
            logits.shape[1],
            figures=choice.figures,
            losses=losses,
            coefficients={"balance": self.config.balance_coefficient, "z": self.config.z_coefficient},
            normalize_kept=self.config.normalize_after_limit,
        )
        if context.training and self.config.second_expert == "random":
            return routing.keep(self._used(weights.detach(), context).flatten())
        return routing

    def _sampled(
        self, logits: Float[Tensor, "T E"], first: Int[Tensor, "T 1"], context: RouteContext
    ) -> Int[Tensor, "T 2"]:
        """Returns the first choice, and one drawn from the softmax without it."""
        noisy = logits + gumbel(logits.shape[1], self.site, context)
        second = noisy.scatter_(1, first, -torch.inf).argmax(1, keepdim=True)
        return torch.cat((first, second), dim=1)

    def _used(self, weights: Float[Tensor, "T 2"], context: RouteContext) -> Bool[Tensor, "T 2"]:
        """Returns all first choices, and the second ones that chance lets through."""
        draws = context.uniform(f"{self.site}.second")
        used = torch.ones_like(weights, dtype=torch.bool)
        used[:, 1] = draws < weights[:, 1] / self.config.second_threshold
        return used
