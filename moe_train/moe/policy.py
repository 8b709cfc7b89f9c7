"""Learning to route by reward: what a router that drew its experts learns from the loss of the predictions made there.

REINFORCE (Williams, 1992), as Clark et al., 2202.01169, sec. 3, have it in RL-R: the reward of the expert drawn for a
token is the log-likelihood that the model gives to the token after it, less a learned baseline. The gradient of
log p(expert) * (loss - baseline), the difference without gradient, is on average that of the expected loss.
The baseline is a regression on the loss by Huber's function, as in r-three/smear's `reinf_bl_routing`.
T tokens, V vocabulary.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.moe.losses import mean_or_zero
from moe_train.results import MoEStats


def token_losses(logits: Float[Tensor, "B S V"], targets: Int[Tensor, "B S"]) -> Float[Tensor, " T"]:
    """The loss of each prediction in nats, without gradient: what a policy is to make small."""
    return F.cross_entropy(logits.detach().flatten(0, 1).float(), targets.flatten(), reduction="none")


def rewarded(stats: MoEStats, losses: Float[Tensor, " T"]) -> MoEStats:
    """The statistics with the losses `policy` and `value` of a layer whose experts were drawn; else as they are."""
    policy = stats.policy
    if policy is None:
        return stats
    advantage = losses - policy.baseline.detach()
    return stats._replace(
        losses={
            **stats.losses,
            "policy": mean_or_zero(policy.log_probability * advantage),
            "value": F.huber_loss(policy.baseline, losses, reduction="mean" if len(losses) else "sum"),
        },
        coefficients={
            **stats.coefficients,
            "policy": policy.coefficient,
            "value": policy.value_coefficient,
        },
        policy=None,
    )
