"""Implements M6-T's k top-1 (2105.15082, sec. 3.2): k prototypes of E/k experts, Switch in each of them.

p^(j) = softmax over the experts of prototype j, y = sum_j p^(j)_e E_e(x) with e the largest of each: the FLOPs of
top-k without a sequence of k argmaxes. Weights are not renormalised. The balance loss is a sum over prototypes of
(E/k) sum_e f_e P_e, as in Hetu's KTop1Gate; so with k = 1 this is Switch, and with k = E all weights are 1.
Capacity is that of the recipe's convention: with deepspeed ceil(k T / E * factor), Hetu's k * ceil(T / E * factor).
The z-loss is a sum over prototypes too.
T tokens, D model width, E experts, K prototypes of M experts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.router.prototypes import PrototypesRouterConfig
from moe_train.moe.losses import TokenSets, balance_loss, z_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routing import RouteContext, Routing


class PrototypesRouter(GateRouter):
    """Takes the best expert of every prototype; prototype j has the experts j * E/K and up."""

    config: PrototypesRouterConfig

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to one expert of each prototype."""
        prototypes, num_experts = self.config.prototypes, self.weight.shape[1]
        size = num_experts // prototypes
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            probabilities = torch.log_softmax(logits.t().reshape(prototypes, size, -1), dim=1).exp()
            weights, best = probabilities.max(1)
            expert_ids = best.t() + torch.arange(0, num_experts, size, device=x.device)
            losses = self._losses(logits, probabilities.flatten(0, 1).t(), expert_ids, context)
        return table_routing(
            expert_ids,
            weights.t(),
            num_experts,
            figures=self.figures(logits, context),
            losses=losses,
            coefficients={"balance": self.config.balance_coefficient, "z": self.config.z_coefficient},
        )

    def softmaxes(self, logits: Float[Tensor, "T E"]) -> Sequence[Float[Tensor, "T M"]]:
        """Returns one softmax for each prototype."""
        return logits.chunk(self.config.prototypes, dim=1)

    def _losses(
        self,
        logits: Float[Tensor, "T E"],
        probabilities: Float[Tensor, "T E"],
        expert_ids: Int[Tensor, "T K"],
        context: RouteContext,
    ) -> dict[str, Loss]:
        """Sums over prototypes: with K choices the factor E of the balance loss is a prototype's E / K."""
        groups = TokenSets.of("group", self.group, context.rows)
        sets = TokenSets.of(self.config.balance_over, self.group, context.rows)
        z = [z_loss(of_one, groups) for of_one in self.softmaxes(logits)]
        return {"balance": balance_loss(probabilities, expert_ids, sets), "z": torch.stack(z).sum()}
