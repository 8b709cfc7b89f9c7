"""Implements DSelect-k: a differentiable choice of at most k experts, by binary codes.

Hazimeh et al., 2106.03760, sec. 3, and google-research's `dselect_k_moe`. Each of k selectors has m = log2(E) outputs
z; with the smooth step S its weight for expert i is the product over i's binary digits of S(z) where the digit is 1
and 1 - S(z) where it is 0; selectors are mixed by a softmax of further outputs. S is exactly 0 or 1 outside of
(-gamma/2, gamma/2), so an expert's weight becomes exactly 0, and its gradient too: leaving it out here changes
nothing, where the code evaluates all experts. Loss `entropy` (of the selectors, summed; a mean over tokens) settles
the digits; it is summed up digit by digit, which is the same. Built per token ("per-example"), without biases. E must
be a power of two: the code's penalty on codes without an expert, 1 / (what a selector gives to experts), is infinite
as soon as one token's selector has settled on such a code, and has no gradient there. No noise, no capacity limit.
The z-loss is that of the mixture's softmax, the only one there is.
T tokens, D model width, E experts, K selectors, M digits.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_train.config.kinds.router.dselect_k import DSelectKRouterConfig
from moe_train.initial import Initial, Normal
from moe_train.moe.losses import TokenSets, active_balance_loss, watched, z_loss
from moe_train.moe.routers.edges import Loss, masked_routing
from moe_train.moe.routers.gate import GateRouter
from moe_train.moe.routers.scores import SMALLEST
from moe_train.moe.routing import RouteContext, Routing


class DSelectKRouter(GateRouter):
    """Uses all experts with a weight above 0: many at first, at most k once the selectors have settled."""

    config: DSelectKRouterConfig

    def __init__(
        self, config: DSelectKRouterConfig, *, d_model: int, num_experts: int, group: int, site: str
    ):
        super().__init__(config, d_model=d_model, num_experts=num_experts, group=group, site=site)
        self.weight = nn.Parameter(torch.empty(d_model, config.num_outputs(num_experts)))

    def initial(self, name: str) -> Initial:
        """Starts outputs at about +-0.01, in the middle of the smooth step (the code: within gamma / 100)."""
        return Normal(fan_in=self.weight.shape[0], scale=1e-4)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes every token to the experts that its selectors' codes leave."""
        config = self.config
        with torch.autocast(x.device.type, enabled=False):
            outputs = self.logits(x, context)
            (mixture,) = self.softmaxes(outputs)
            steps = self._steps(outputs)
            weights = code_products(steps, torch.softmax(mixture, dim=1)).sum(1)
            groups = TokenSets.of("group", self.group, context.rows)
            sets = TokenSets.of(config.balance_over, self.group, context.rows)
            losses: dict[str, Loss] = {
                "entropy": groups.mean(digit_entropy(steps).sum((1, 2))),
                "balance": active_balance_loss(
                    watched(weights, config.balance_coefficient), weights > 0, sets
                ),
                "z": z_loss(watched(mixture, config.z_coefficient), groups),
            }
        return masked_routing(
            weights,
            weights > 0,
            figures=self.figures(outputs, context),
            losses=losses,
            coefficients={
                "entropy": config.entropy_coefficient,
                "balance": config.balance_coefficient,
                "z": config.z_coefficient,
            },
        )

    def softmaxes(self, logits: Float[Tensor, "T N"]) -> Sequence[Float[Tensor, "T K"]]:
        """Returns the softmax over selectors, of the last outputs."""
        return (logits[:, -self.config.num_choices :],)

    def expert_logits(self, logits: Float[Tensor, "T N"]) -> Float[Tensor, "T E"]:
        """Returns logarithms of the selectors' mixture, whose softmax it is; almost -inf for a weight of 0."""
        (mixture,) = self.softmaxes(logits)
        weights = code_products(self._steps(logits), torch.softmax(mixture, dim=1)).sum(1)
        return weights.clamp(min=SMALLEST).log()

    def _steps(self, outputs: Float[Tensor, "T N"]) -> Float[Tensor, "T K M"]:
        """Returns the smooth step of each selector's digits, which are all outputs but the last."""
        k = self.config.num_choices
        return smooth_step(outputs[:, :-k].unflatten(1, (k, outputs.shape[1] // k - 1)), self.config.gamma)


def smooth_step(t: Float[Tensor, "*S"], gamma: float) -> Float[Tensor, "*S"]:
    """Returns 0 below -gamma/2, 1 above gamma/2, -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2 between."""
    u = (t / gamma).clamp(-0.5, 0.5)
    return -2 * u**3 + 1.5 * u + 0.5


def code_products(steps: Float[Tensor, "T K M"], of_selector: Float[Tensor, "T K"]) -> Float[Tensor, "T K E"]:
    """Returns each selector's weight of each expert: its own, times step or 1 - step for every digit of the number.

    From the lowest digit on, each digit doubles the experts told apart: 2 E products, where one by one it is E log E.
    """
    products = of_selector.unsqueeze(2)
    for step in steps.unbind(2):
        either = torch.stack((1 - step, step), dim=2)
        products = (either.unsqueeze(3) * products.unsqueeze(2)).flatten(2)
    return products


def digit_entropy(steps: Float[Tensor, "T K M"]) -> Float[Tensor, "T K M"]:
    """Returns the entropy of each digit in nats; a selector's is their sum, as its weights are products over digits."""
    steps = steps.clamp(1e-6, 1 - 1e-6)  # where one is settled, its entropy and the gradient are 0
    rest = 1 - steps
    return -(steps * steps.log() + rest * rest.log())
