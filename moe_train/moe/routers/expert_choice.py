"""Implements expert choice: experts choose tokens.

Zhou et al., 2202.09368, sec. 3.2, and flaxformer's `ExpertsChooseMaskedRouter`: with S = softmax(x W) over the experts
each expert takes the tokens with its largest S, as many as `tokens_per_expert` fair shares, and weighs them by S,
which is not renormalised. Loads are exactly equal without a loss; a token may have no expert, or all of them.
What a token gets depends on all tokens of its group, so causal objectives refuse it; a group is
`moe.group_sequences` whole sequences. A fair share is one of the real tokens: padding is not chosen, and where there is
much of it experts take fewer.
T tokens, D model width, E experts, G groups, S tokens of a group, K of them taken.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moe_train.config.kinds.router.expert_choice import ExpertChoiceRouterConfig
from moe_train.moe.losses import TokenSets, z_loss
from moe_train.moe.routers.edges import masked_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routing import RouteContext, Routing


class ExpertChoiceRouter(GateRouter):
    """Gives each expert its best tokens, the same way in training and validation."""

    config: ExpertChoiceRouterConfig

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Gives every expert its tokens; loss `z` is always computed, to be reported."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            probabilities = torch.log_softmax(logits, dim=1).exp()
            rows, groups = context.rows, TokenSets.of("group", self.group, context.rows)
            by_group = rows.lay_out_groups(probabilities.detach(), self.group)
            chosen = self._chosen(by_group, rows.occupied_groups(self.group))
        return masked_routing(
            probabilities,
            rows.take(chosen.reshape(*rows.values.shape, self.num_experts)),
            figures=self.figures(logits, context),
            losses={"z": z_loss(logits, groups)},
            coefficients={"z": self.config.z_coefficient},
        )

    def _chosen(
        self, scores: Float[Tensor, "G S E"], is_real: Bool[Tensor, "G S"] | None
    ) -> Bool[Tensor, "G S E"]:
        """Returns where an expert takes a token; of equal scores that of the earlier token."""
        tokens = scores.shape[1]
        # Integers in the order of (score, earlier token), no two of them equal: so `topk` has no choice on any device.
        # Scores are not negative, and the bits of such numbers have their order.
        places = torch.arange(tokens - 1, -1, -1, device=scores.device)
        keys = scores.transpose(1, 2).contiguous().view(torch.int32).long() * tokens + places
        taken = torch.ones((), dtype=torch.bool, device=scores.device)
        if is_real is not None:
            keys = keys.masked_fill(~is_real.unsqueeze(1), -1)
            shares = is_real.new_tensor(
                [self.tokens_taken(n) for n in is_real.sum(1).tolist()], dtype=torch.int64
            )
            taken = torch.arange(self.tokens_taken(tokens), device=scores.device) < shares.view(-1, 1, 1)
        best = keys.topk(self.tokens_taken(tokens), dim=2, sorted=is_real is not None).indices
        chosen = torch.zeros_like(keys, dtype=torch.bool).scatter_(2, best, taken.expand_as(best))
        return chosen.transpose(1, 2)

    def tokens_taken(self, group_tokens: int) -> int:
        """Returns how many tokens an expert takes of a group: S * tokens_per_expert / E rounded down, or 1 if any."""
        taken = math.floor(group_tokens * self.config.tokens_per_expert / self.num_experts)
        return min(max(taken, 1), group_tokens)
