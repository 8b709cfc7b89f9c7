"""Implements the sparsely-gated layer (1701.06538, sec. 2.1 and 4), as in tensor2tensor's `noisy_top_k_gating`.

H = x Wg + eps * (softplus(x Wn) + 0.01) with eps ~ N(0, 1) in training, H = x Wg in validation   # eq. 4
G = softmax over the k largest of H, 0 elsewhere                                                 # eq. 3, 5
importance = CV^2 of sum_t G_t, load = CV^2 of sum_t P_t                                         # eq. 6, 8-11
P_ti is the chance that expert i is among the k if its noise alone were drawn again: Phi((x Wg - threshold) / sigma),
the threshold being the (k+1)-th largest of H where i is among the k, else the k-th. Without noise, or with k = E,
the load is the plain count, without a gradient. The softplus' offset is the code's; the paper has none. Balance and
z-loss, which the paper has not, are of x Wg without noise. Both matrices begin at 0, so that routing starts as pure
noise.
The paper has no capacity limit: use moe.capacity_factor=null. T tokens, D model width, E experts, K choices.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router.noisy_top_k import NoisyTopKRouterConfig
from moe_train.initial import Constant, Initial
from moe_train.moe.losses import TokenSets, balance_loss, cv_squared, watched, z_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import normal
from moe_train.moe.routers.scores import gate_logits, jittered, largest
from moe_train.moe.routing import RouteContext, Routing

NOISE_FLOOR = 0.01


class NoisyTopKRouter(GateRouter):
    """Takes the k largest of noisy logits; losses `importance` and `load`."""

    config: NoisyTopKRouterConfig

    def __init__(
        self, config: NoisyTopKRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.noise_weight = nn.Parameter(torch.empty(d_model, num_experts))

    def initial(self, name: str) -> Initial:
        """Starts both matrices at 0, as in the paper's appendix A: all experts are equally likely at first."""
        return Constant(0.0)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to k experts."""
        config, k, num_experts = self.config, self.config.num_choices, self.weight.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            clean = noisy = self.logits(x, context)
            if context.training:
                jittery = jittered(x.float(), config.jitter, self.site, context)
                deviation = F.softplus(gate_logits(jittery, self.noise_weight)) + NOISE_FLOOR
                noisy = clean + deviation * normal(num_experts, self.site, context)
            values, expert_ids = largest(noisy.t().contiguous(), min(k + 1, num_experts))
            kept = expert_ids[:, :k]
            weights = torch.softmax(values[:, :k], dim=1)
            gates = torch.zeros_like(clean).scatter(1, kept, weights)
            if context.training and k < num_experts:
                load = chance_of_choice(clean, noisy, deviation, values, k)
            else:
                load = torch.zeros_like(clean).scatter(1, kept, 1.0)
            groups = TokenSets.of("group", self.group, context.rows)
            sets = TokenSets.of(config.balance_over, self.group, context.rows)
            shares = torch.softmax(watched(clean, config.balance_coefficient), dim=1)
            losses: dict[str, Loss] = {
                "importance": sets.loss(sets.totals(gates), cv_squared),
                "load": sets.loss(sets.totals(load), cv_squared),
                "balance": balance_loss(shares, kept, sets),
                "z": z_loss(watched(clean, config.z_coefficient), groups),
            }
        return table_routing(
            kept,
            weights,
            num_experts,
            figures=self.figures(clean, context),
            losses=losses,
            coefficients={
                "importance": config.importance_coefficient,
                "load": config.load_coefficient,
                "balance": config.balance_coefficient,
                "z": config.z_coefficient,
            },
        )


def chance_of_choice(
    clean: Float[Tensor, "T E"],
    noisy: Float[Tensor, "T E"],
    deviation: Float[Tensor, "T E"],
    values: Float[Tensor, "T M"],
    k: int,
) -> Float[Tensor, "T E"]:
    """Returns P(x, i) of eq. 9: `values` are the k + 1 largest of `noisy`, largest first."""
    threshold = torch.where(noisy > values[:, k:], values[:, k:], values[:, k - 1 : k])
    return torch.special.ndtr((clean - threshold) / deviation)
