"""Implements BASE: in training a linear assignment gives every expert the same number of tokens.

Lewis et al., 2103.16716, sec. 2-3, and fairseq's `base_layer.py`: the score of a token and an expert is x . w_e.
Scores are of the residual stream, experts get its norm. The balanced assignment with the largest total score is found
without gradient (moe_kernels); the expert's output is weighed by sigmoid(x . w_e), which is the only way for a
gradient to reach w_e. In validation each token takes its best expert, so loads are unequal there. No balance loss, no
capacity limit. As in the code the vectors w_e begin orthogonal, 0.1 long, and the experts' second matrix at 0: the
layer begins as the identity, its residual.
Where we differ: the code shuffles tokens over all workers and then assigns those of a worker, which depends on the
layout; here the tokens of a routing group (`moe.group_sequences` whole sequences) are assigned among themselves,
without padding: an expert has at most its share of the real tokens, rounded up. Its auction stops early; ours takes
shortest augmenting paths instead and is exact. A token's own weight never depends on other tokens.
T tokens, D model width, E experts, G groups.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_kernels.ops.assignment import balanced_assignment
from moe_train.config.kinds.router.base import BaseRouterConfig
from moe_train.initial import Initial, Orthogonal
from moe_train.moe.losses import TokenSets, watched, z_loss
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routing import RouteContext, Routing


class BaseRouter(GateRouter):
    """Routes each token to one expert: assigned in training, the best in validation."""

    config: BaseRouterConfig

    def initial(self, name: str) -> Initial:
        """Starts the experts' vectors orthogonal."""
        return Orthogonal(gain=0.1)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to one expert."""
        with torch.autocast(x.device.type, enabled=False):
            scores = self.logits(x, context)
            rows, groups = context.rows, TokenSets.of("group", self.group, context.rows)
            if context.training:
                by_group = rows.lay_out_groups(scores.detach(), self.group)
                assigned = self.assign(by_group, rows.occupied_groups(self.group))
                expert_ids = rows.take(assigned.reshape(rows.values.shape))
            else:
                expert_ids = scores.argmax(1)
            weights = torch.sigmoid(scores.gather(1, expert_ids.unsqueeze(1)))
            z_coefficient = self.config.z_coefficient
            losses = {"z": z_loss(watched(scores, z_coefficient), groups)}
        return table_routing(
            expert_ids.unsqueeze(1),
            weights,
            self.num_experts,
            figures=self.figures(scores, context),
            losses=losses,
            coefficients={"z": z_coefficient},
        )

    def assign(
        self, scores: Float[Tensor, "G S E"], is_real: Bool[Tensor, "G S"] | None
    ) -> Int[Tensor, "G S"]:
        """Returns the expert of every token, each group by itself; that of padding is arbitrary."""
        if is_real is None:
            return balanced_assignment(scores).long()
        expert_ids = torch.zeros_like(is_real, dtype=torch.int64)
        for ids, group, real in zip(expert_ids, scores, is_real, strict=True):
            ids[real] = balanced_assignment(group[real].unsqueeze(0))[0].long()
        return expert_ids
