"""Implements RL-R: a policy draws a token's expert, and learns from the loss of the prediction made for that token.

Clark et al., 2202.01169, sec. 3: p = softmax(x W) is a policy; in training a token's expert is drawn from it, in
validation it is the likeliest. The expert's output is not weighed, so no gradient of the task reaches W through it:
what teaches W is the reward (moe/policy.py), less a baseline that is linear in x and learned beside it, without
gradient into x. A balance loss is kept.
Conventions: we have not seen the authors' code. That the output is not weighed, the coefficients, the baseline's loss
and the sign of the entropy's term (above 0 makes the policy surer) are those of r-three/smear's `reinf_bl_routing`,
which follows the paper; its baseline has a narrow hidden layer, ours none.
T tokens, D model width, E experts.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router.reinforce import ReinforceRouterConfig
from moe_train.initial import Constant, Initial
from moe_train.moe.losses import TokenSets, balance_loss, entropies, watched, z_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import gumbel
from moe_train.moe.routing import RouteContext, Routing
from moe_train.results import Policy


class ReinforceRouter(GateRouter):
    """Routes each token to one expert: drawn in training, the likeliest in validation."""

    config: ReinforceRouterConfig

    def __init__(
        self, config: ReinforceRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.value_weight = nn.Parameter(torch.empty(d_model))
        self.value_offset = nn.Parameter(torch.empty(1))

    def initial(self, name: str) -> Initial:
        """Starts the baseline at 0, and the policy like any gate."""
        return super().initial(name) if name == "weight" else Constant(0.0)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to one expert, with weight 1."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            log_probabilities = torch.log_softmax(logits, dim=1)
            probabilities = log_probabilities.exp()
            # The largest of logits and Gumbel noise is a draw from their softmax.
            noise = gumbel(self.num_experts, self.site, context) if context.training else 0.0
            expert_ids = (logits.detach() + noise).argmax(1, keepdim=True)
            groups = TokenSets.of("group", self.group, context.rows)
            sets = TokenSets.of(self.config.balance_over, self.group, context.rows)
            losses: dict[str, Loss] = {
                "balance": balance_loss(probabilities, expert_ids, sets),
                "z": z_loss(watched(logits, self.config.z_coefficient), groups),
                "entropy": groups.mean(
                    entropies(watched(log_probabilities, self.config.entropy_coefficient))
                ),
            }
            policy = None
            if context.training:
                policy = Policy(
                    log_probability=-F.nll_loss(log_probabilities, expert_ids.squeeze(1), reduction="none"),
                    baseline=x.detach().float() @ self.value_weight + self.value_offset,
                    coefficient=self.config.policy_coefficient,
                    value_coefficient=self.config.value_coefficient,
                    places=context.rows.places,
                )
        return table_routing(
            expert_ids,
            torch.ones(len(x), 1, device=x.device),
            self.num_experts,
            figures=self.figures(logits, context),
            losses=losses,
            coefficients={
                "balance": self.config.balance_coefficient,
                "z": self.config.z_coefficient,
                "entropy": self.config.entropy_coefficient,
            },
            policy=policy,
        )
