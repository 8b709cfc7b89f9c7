"""Implements DeepSeek's gate: V3 (2412.19437, eq. 12-20) by default, V1 (2401.06066) and V2 (2405.04434) by its keys.

s = sigmoid(x W), softmax in V1 and V2. The k experts with the largest s + b are chosen; their weights are the s
without b, divided by their sum, times `weight_scale`. With groups a token takes its experts from the `top_groups`
groups whose k / top_groups largest s + b have the largest sum, as the V3 paper and megatron-core have it (its
published code has a constant 2, its value there; V2's code takes the largest alone).
Loss-free balancing (Wang et al., 2408.15664, alg. 1): b_i += rate * sign(mean load - load_i) after every update, with
the loads of the global batch; b has no gradient and stands still in validation. Only differences of b matter.
The balance loss is sequence-wise by default (V3 eq. 17-20): f counts the k largest s, not
s + b, and P is s divided by its sum. V2 (eq. 23-25, from memory) and its code count the experts that tokens were sent
to, after the limit on groups; here f is V3's whatever the keys.
The device-level loss of V1 (eq. 15-17) and V2 is sum_d f'_d P'_d, f' the mean of f over the experts of device d, P' the
sum of P: the balance loss with groups in the place of experts. Groups are the recipe's, the same on every layout.
Shared experts are the layer's business: `moe.shared_experts`. T tokens, D model width, E experts, G groups.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.router.deepseek import DeepSeekRouterConfig
from moe_train.moe.losses import TokenSets, balance_loss, watched, z_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.scores import largest
from moe_train.moe.routing import RouteContext, Routing


class DeepSeekRouter(GateRouter):
    """Takes the k experts with the largest biased scores, weighted by the plain ones."""

    config: DeepSeekRouterConfig

    bias: Float[Tensor, " E"]

    def __init__(
        self, config: DeepSeekRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.coefficients = {
            "balance": config.balance_coefficient,
            "group_balance": config.group_balance_coefficient,
            "z": config.z_coefficient,
        }
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to k experts."""
        config = self.config
        with torch.autocast(x.device.type, enabled=False):
            by_token = self.logits(x, context)
            logits = by_token.t().contiguous()
            scores = torch.sigmoid(logits) if config.scores == "sigmoid" else torch.softmax(logits, 0)
            expert_ids = largest(self._allowed(scores.detach() + self.bias.unsqueeze(1)), config.num_choices)[
                1
            ]
            weights = scores.t().gather(1, expert_ids)
            if config.normalize:
                weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
            shares = scores / (scores.sum(0) + 1e-20)
            losses = self._losses(logits.t(), scores.detach(), shares, context)
        return table_routing(
            expert_ids,
            weights * config.weight_scale,
            len(scores),
            figures=self.figures(by_token, context),
            losses=losses,
            coefficients={name: self.coefficients[name] for name in losses},
        )

    def expert_logits(self, logits: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        """Returns the logarithms of sigmoids, so that the softmax is each one's share of their sum."""
        return F.logsigmoid(logits) if self.config.scores == "sigmoid" else logits

    def _losses(
        self,
        logits: Float[Tensor, "T E"],
        scores: Float[Tensor, "E T"],
        shares: Float[Tensor, "E T"],
        context: RouteContext,
    ) -> dict[str, Loss]:
        """Returns balance and z-loss, and the balance loss of groups where there are any."""
        num_experts, num_groups = len(shares), self.config.num_groups
        plain = largest(scores, self.config.num_choices)[1]
        sets = TokenSets.of(self.config.balance_over, self.group, context.rows)
        balanced = {"balance": num_experts} | ({"group_balance": num_groups} if num_groups > 1 else {})
        losses: dict[str, Loss] = {
            name: balance_loss(
                watched(shares, self.coefficients[name]).unflatten(0, (number, -1)).sum(1).t(),
                plain // (num_experts // number),
                sets,
            )
            for name, number in balanced.items()
        }
        groups = TokenSets.of("group", self.group, context.rows)
        return losses | {"z": z_loss(watched(logits, self.coefficients["z"]), groups)}

    def _allowed(self, biased: Float[Tensor, "E T"]) -> Float[Tensor, "E T"]:
        """Returns the scores, -inf outside of the best groups of each token."""
        config = self.config
        if config.top_groups == config.num_groups:
            return biased
        grouped = biased.unflatten(0, (config.num_groups, -1))
        totals = grouped.topk(config.num_choices // config.top_groups, dim=1).values.sum(1)
        kept = torch.zeros_like(totals, dtype=torch.bool)
        kept.scatter_(0, largest(totals, config.top_groups)[1].t(), True)
        return grouped.masked_fill(~kept.unsqueeze(1), -torch.inf).flatten(0, 1)

    @torch.no_grad()
    def gauges(self, step: int) -> Mapping[str, Float[Tensor, ""]]:
        """Returns how far the experts' biases are apart."""
        return {"bias_range": self.bias.max() - self.bias.min()}

    @torch.no_grad()
    def after_update(self, load: Int[Tensor, " E"]) -> None:
        """Raises the bias of experts with less than the mean load, and lowers that of the others."""
        excess = load.sum() - load * len(load)  # E times (mean - load): integers, so exact
        self.bias.add_(self.config.bias_rate * torch.sign(excess))
