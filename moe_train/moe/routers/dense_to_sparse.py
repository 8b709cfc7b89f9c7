"""Implements EvoMoE: one expert at first, then all by the Dense-to-Sparse gate, in the end one per token.

Nie et al., 2112.14397, sec. 3, and the authors' code. Expert-diversify: for `diversify_steps` updates all tokens go to
expert 0 with weight 1, without a gate; then every expert becomes a masked copy of it (distribute/spawn.py has the
conventions). Gate-sparsify: g = softmax((z + Gumbel noise) / tau) with a temperature tau that falls over the run; a
token goes to the experts with g above a threshold, and the weights of those are not renormalised. From `hard_step` on
it goes to the largest g alone, still with noise. Both schedules count the gate's own updates.
An expert's weight is g (`gate: gumbel`, the paper's, `use_gumbel_gates` in the code), and the gradient of the loss
reaches the logits through it. `gate: softmax` is the code's default (codecaution/EvoMoE, fairseq/parameter.py): the
weight is softmax(z), without noise and temperature, and g only chooses the experts.
Validation: top-1 wherever there is a gate, with the weight of the gate at the temperature of that step, but without
noise: softmax(z / tau), or softmax(z) with `gate: softmax`, which is Switch. The code (fairseq/modules/moe/top1gate.py)
is top-1 too and has the same two weights; with `use_gumbel_gates` it draws noise there as well, and each expert takes a
quarter of the batch at most. Here validation draws nothing, so it repeats exactly, and there is no capacity limit.
Temperatures of 2.0 to 0.3, linear, are the paper's from memory. The code's defaults are 1.0 to 0.5;
kdd_scripts/wmt14_en_fr_gumbel.sh has 2.0 to 0.5, linear in 5,000 updates, and one expert from 6,000 on, of 4.
T tokens, D model width, E experts.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moe_train.config.kinds.router.dense_to_sparse import DenseToSparseRouterConfig
from moe_train.moe.losses import TokenSets, active_balance_loss, z_loss
from moe_train.moe.routers.edges import Loss, masked_routing, table_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.noise import gumbel
from moe_train.moe.routing import RouteContext, Routing


class DenseToSparseRouter(GateRouter):
    """Routes to one expert, then to a mixture of all, and on to top-1 by a falling temperature."""

    config: DenseToSparseRouterConfig

    def __init__(
        self, config: DenseToSparseRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.coefficients = {"balance": config.balance_coefficient, "z": config.z_coefficient}

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to a number of experts that the logits decide, once there is a gate."""
        gate_step = context.forward_pass.step - self.config.diversify_steps
        if gate_step < 0:
            return self._to_the_first(len(x))
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, context)
            log_probabilities = torch.log_softmax(logits, dim=1)
            probabilities = log_probabilities.exp()
            noise = gumbel(self.num_experts, self.site, context) if context.training else 0.0
            gates = torch.softmax((logits + noise) / self.temperature(gate_step), dim=1)
            weights = gates if self.config.gate == "gumbel" else probabilities
            is_sparse = not context.training or self.is_hard(gate_step)
            active = _one_hot(gates) if is_sparse else gates > self.config.threshold
            groups = TokenSets.of("group", self.group, context.rows)
            sets = TokenSets.of(self.config.balance_over, self.group, context.rows)
            losses: dict[str, Loss] = {
                "balance": active_balance_loss(weights, active, sets),
                "z": z_loss(logits, groups),
            }
        return masked_routing(
            weights,
            active,
            num_choices=1 if is_sparse else self.num_experts,
            figures=self.figures(logits, context),
            losses=losses,
            coefficients=self.coefficients,
        )

    def spawn_mask(self, updates: int) -> float | None:
        """Returns the mask of copies after `diversify_steps` updates of expert 0 alone; None otherwise."""
        return self.config.diversify_mask if 0 < updates == self.config.diversify_steps else None

    def gauges(self, step: int) -> Mapping[str, float]:
        """Returns the temperature."""
        gate_step = step - self.config.diversify_steps
        return {"temperature": self.temperature(gate_step) if gate_step >= 0 else math.nan}

    def temperature(self, gate_step: int) -> float:
        """Returns tau after some updates of the gate: `temperature_start` to `temperature_end` in `decay_steps`."""
        start, end = self.config.temperature_start, self.config.temperature_end
        share = min(gate_step / self.config.decay_steps, 1.0)
        if self.config.decay == "exponential":
            return start * (end / start) ** share
        return start + share * (end - start)

    def is_hard(self, gate_step: int) -> bool:
        """Returns whether a token has one expert from here on."""
        return self.config.hard_step is not None and gate_step >= self.config.hard_step

    def _to_the_first(self, tokens: int) -> Routing:
        """Routes all tokens to expert 0. The gate has no losses there, only a gradient of zeros."""
        nothing = self.weight.sum() * 0.0
        return table_routing(
            torch.zeros(tokens, 1, dtype=torch.int64, device=self.weight.device),
            self.weight.new_ones(tokens, 1),
            self.num_experts,
            losses={"balance": nothing, "z": nothing},
            coefficients=self.coefficients,
        )


def _one_hot(scores: Float[Tensor, "T E"]) -> Bool[Tensor, "T E"]:
    """Returns where the largest score of each token stands."""
    return F.one_hot(scores.argmax(1), scores.shape[1]).bool()
