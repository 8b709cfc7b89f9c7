"""Implements softmax routing to the k largest experts: Switch with k = 1, Mixtral's with k = 2.

Switch is Fedus et al., 2101.03961, sec. 2: one expert per token, its output times its probability, which is
not renormalised (the only path of the task's gradient into the router). Input jitter as in mesh-tensorflow's
`_switch_gating`, in training only, and so are its other two policies, dropout on the input and an expert drawn from the
softmax, whose weight is its probability all the same. With `reroutes` a token whose expert is full goes to the next
best that has room, at that one's probability: the code's "no token left behind" (`_ntlb_gating`, four experts in all).
Its balance loss counts all four; here it counts first choices, as the paper's does.
T tokens, D model width, E experts, K choices.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.moe.losses import TokenSets, balance_loss
from moe_train.moe.routers.edges import Loss, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import gumbel
from moe_train.moe.routers.scores import gate_logits, jittered, partly_zeroed, softmax_choice
from moe_train.moe.routing import RouteContext, Routing


class TopKRouter(GateRouter):
    """Takes logits in fp32, the softmax over all experts and its k largest; ties go to the lower expert id."""

    config: SwitchRouterConfig | TopKRouterConfig

    def __init__(
        self,
        config: SwitchRouterConfig | TopKRouterConfig,
        *,
        d_model: int,
        num_experts: int,
        group: int,
        site: str,
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.reroutes = config.reroutes if isinstance(config, SwitchRouterConfig) else 0
        self.num_choices = config.num_choices + self.reroutes
        self.normalize = isinstance(config, TopKRouterConfig) and config.normalize
        self.samples = isinstance(config, SwitchRouterConfig) and config.policy == "sampling"
        self.input_dropout = config.input_dropout if isinstance(config, SwitchRouterConfig) else 0.0

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token; losses `balance` and `z` are always computed, to be reported."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            groups = TokenSets.of("group", self.group, context.rows)
            sets = TokenSets.of(self.config.balance_over, self.group, context.rows)
            choice = softmax_choice(logits, self.num_choices, groups)
            expert_ids, weights = choice.expert_ids, choice.weights
            if self.samples and context.training:
                # A draw from each token's softmax. Its probability is the weight, and carries the gradient.
                noisy = logits.detach() + gumbel(logits.shape[1], self.site, context)
                expert_ids = noisy.argmax(1, keepdim=True)
                weights = choice.probabilities.gather(1, expert_ids)
            if self.normalize:
                weights = weights / weights.sum(-1, keepdim=True)
            chosen = expert_ids[:, :1] if self.reroutes else expert_ids
            losses: dict[str, Loss] = {
                "balance": balance_loss(choice.probabilities, chosen, sets),
                "z": choice.z,
            }
        return table_routing(
            expert_ids,
            weights,
            logits.shape[1],
            figures=choice.figures,
            alternatives=self.reroutes > 0,
            losses=losses,
            coefficients={"balance": self.config.balance_coefficient, "z": self.config.z_coefficient},
        )

    def _logits(self, x: Float[Tensor, "T D"], context: RouteContext) -> Float[Tensor, "T E"]:
        """Returns the logits of the input with jitter and dropout."""
        x = jittered(x.float(), self.config.jitter, self.site, context)
        return gate_logits(partly_zeroed(x, self.input_dropout, self.site, context), self.weight)
