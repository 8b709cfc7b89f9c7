"""Implements S-BASE: BASE with Sinkhorn's plan instead of the exact assignment.

Clark et al., 2202.01169, sec. 3.1, and megatron-core's `sinkhorn_load_balancing`: in training exp(scores) is scaled
until every token has the same mass and every expert too, and a token goes to the expert of its largest entry; the
weight is sigmoid(score) of the raw score. So loads are nearly equal, not exactly. In validation each token
takes its best expert. Scores are those of the normed rows, as in megatron-core; BASE's are of the residual stream. Only
one expert per token is built, which the paper found to be enough. Groups are those of base.py; initial values are those
of any layer.
G groups, S tokens of a group, E experts.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.config.kinds.router.sinkhorn import SinkhornRouterConfig
from moe_train.initial import Initial
from moe_train.moe.assignment import sinkhorn_plan
from moe_train.moe.routers.base import BaseRouter
from moe_train.moe.routers.gate import GateRouter


class SinkhornRouter(BaseRouter):
    """Replaces the assignment of BaseRouter."""

    config: SinkhornRouterConfig

    def initial(self, name: str) -> Initial:
        """Starts the matrix like that of any gate."""
        return GateRouter.initial(self, name)

    def assign(
        self, scores: Float[Tensor, "G S E"], is_real: Bool[Tensor, "G S"] | None
    ) -> Int[Tensor, "G S"]:
        """Returns the largest entry of each token's row in the plan."""
        config = self.config
        return sinkhorn_plan(scores, config.tolerance, config.max_iterations, is_real).argmax(2)
