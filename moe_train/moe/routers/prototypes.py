"""M6-T's k top-1 (Yang et al., 2105.15082, sec. 3.2): k prototypes of E/k experts, Switch in each of them.

p^(j) = softmax over the experts of prototype j, y = sum_j p^(j)_e E_e(x) with e the largest of each: the FLOPs of
top-k without a sequence of k argmaxes. Weights are not renormalised. The balance loss is a sum over prototypes of
(E/k) sum_e f_e P_e, as in Hetu's KTop1Gate; so with k = 1 this is Switch, and with k = E all weights are 1.
Capacity is that of the recipe's convention: with deepspeed ceil(k T / E * factor), Hetu's k * ceil(T / E * factor).
The z-loss is a sum over prototypes too; entropy and largest probability are means.
T tokens, D model width, E experts, K prototypes of M experts.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router import PrototypesRouterConfig
from moe_train.moe.losses import balance_loss, z_loss
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routers.scores import gate_logits, jittered, sum_of_largest, total_entropy
from moe_train.moe.routing import RouteContext, Routing


class PrototypesRouter(nn.Module):
    """The best expert of every prototype; prototype j has the experts j * E/K and up."""

    def __init__(
        self, config: PrototypesRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__()
        self.config, self.group, self.site = config, group, site
        self.weight = nn.Parameter(torch.empty(d_model, num_experts))

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Route every token to one expert of each prototype."""
        prototypes, num_experts = self.config.prototypes, self.weight.shape[1]
        size = num_experts // prototypes
        with torch.autocast(x.device.type, enabled=False):
            logits = gate_logits(jittered(x.float(), self.config.jitter, self.site, context), self.weight)
            log_probabilities = torch.log_softmax(logits.t().reshape(prototypes, size, -1), dim=1)
            probabilities = log_probabilities.exp()
            weights, best = probabilities.max(1)
            losses = self._losses(logits, probabilities, best, context)
        first = torch.arange(0, num_experts, size, device=x.device)
        return table_routing(
            best.t() + first,
            weights.t(),
            num_experts,
            entropy=total_entropy(probabilities, log_probabilities, context.real_rows) / prototypes,
            top_probability=sum_of_largest(weights.mean(0).unsqueeze(1), context.real_rows),
            losses=losses,
            coefficients={"balance": self.config.balance_coefficient, "z": self.config.z_coefficient},
        )

    def _losses(
        self, logits: Tensor, probabilities: Float[Tensor, "K M T"], best: Tensor, context: RouteContext
    ) -> dict[str, Tensor]:
        group_tokens, real = self.group * context.sequence_length, context.real_rows
        balance = [
            balance_loss(of_one.t(), chosen.unsqueeze(1), group_tokens, real)
            for of_one, chosen in zip(probabilities, best, strict=True)
        ]
        z = [z_loss(of_one, group_tokens, real) for of_one in logits.chunk(self.config.prototypes, dim=1)]
        return {"balance": torch.stack(balance).sum(), "z": torch.stack(z).sum()}
