"""Softmax routing to the k largest experts: Switch with k = 1, GLaM's and Mixtral's way with k = 2.

Switch is Fedus et al., 2101.03961, sec. 2: one expert per token, its output times its probability, which is
not renormalised (the only path of the task's gradient into the router). Input jitter as in mesh-tensorflow's
`_switch_gating`: the router's input times U(1 - jitter, 1 + jitter), elementwise, in training only.
Scores are kept expert by expert ([E, T]): over few experts a softmax is many times faster along a leading dim.
T tokens, D model width, E experts, K choices.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_train.config.kinds.router import SwitchRouterConfig, TopKRouterConfig
from moe_train.moe.losses import balance_loss, z_loss
from moe_train.moe.routing import RouteContext, Routing


class TopKRouter(nn.Module):
    """Logits in fp32, softmax over all experts, the k largest; ties go to the lower expert id."""

    def __init__(
        self,
        config: SwitchRouterConfig | TopKRouterConfig,
        *,
        d_model: int,
        num_experts: int,
        group: int,
        site: str,
    ):
        super().__init__()
        self.config, self.group, self.site = config, group, site
        self.num_choices = config.num_choices
        self.normalize = isinstance(config, TopKRouterConfig) and config.normalize
        self.weight = nn.Parameter(torch.empty(d_model, num_experts))

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Route every token; losses `balance` and `z` are always computed, so that they can be watched."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(self._jittered(x.float(), context), self.weight.float().t())
            log_probabilities = torch.log_softmax(logits.t().contiguous(), dim=0)
            probabilities = log_probabilities.exp()
            weights, expert_ids = _largest(probabilities, self.num_choices)
            if self.normalize:
                weights = weights / weights.sum(-1, keepdim=True)
            losses = {
                "balance": balance_loss(probabilities.t(), expert_ids, self.group * context.sequence_length),
                "z": z_loss(logits),
            }
        tokens, experts = logits.shape
        index = torch.arange(tokens * self.num_choices, device=x.device)
        return Routing(
            token_ids=index // self.num_choices,
            expert_ids=expert_ids.reshape(-1),
            choices=index % self.num_choices,
            weights=weights.reshape(-1),
            num_tokens=tokens,
            num_experts=experts,
            num_choices=self.num_choices,
            entropy=-torch.dot(probabilities.detach().flatten(), log_probabilities.detach().flatten()),
            losses=losses,
            coefficients={"balance": self.config.balance_coefficient, "z": self.config.z_coefficient},
        )

    def _jittered(self, x: Float[Tensor, "T D"], context: RouteContext) -> Float[Tensor, "T D"]:
        if not context.training or self.config.jitter == 0:
            return x
        draws = context.random.uniform(f"{self.site}.jitter", context.sequence_length, x.shape[1])
        return x * draws.mul_(2 * self.config.jitter).add_(1 - self.config.jitter).view_as(x)


def _largest(probabilities: Float[Tensor, "E T"], k: int) -> tuple[Float[Tensor, "T K"], Int[Tensor, "T K"]]:
    """The k largest of each token, largest first; ties go to the lower index (`topk` does not promise that)."""
    if k == 1:
        weights, expert_ids = probabilities.max(0)
        return weights.unsqueeze(1), expert_ids.unsqueeze(1)
    left = probabilities.detach().clone()
    chosen = []
    for _ in range(k):
        chosen.append(left.max(0).indices)
        left.scatter_(0, chosen[-1].unsqueeze(0), -1.0)
    expert_ids = torch.stack(chosen)
    return probabilities.gather(0, expert_ids).t(), expert_ids.t()
