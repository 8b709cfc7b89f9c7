"""Teaches a router that drew its experts, by the losses of the predictions made with them.

REINFORCE (Williams, 1992), as Clark et al., 2202.01169, sec. 3, have it in RL-R: the reward of the expert drawn for a
token is the log-likelihood that the model gives to the token after it, less a learned baseline. The gradient of
log p(expert) * (loss - baseline), the difference without gradient, is on average that of the expected loss.
The baseline is a regression on the loss by Huber's function, as in r-three/smear's `reinf_bl_routing`.
T tokens, P places of the batch (T unless some have no row).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.moe.losses import mean_or_zero
from moe_train.results import MoEStats, Policy


def rewarded(stats: MoEStats, losses: Float[Tensor, " P"]) -> MoEStats:
    """Adds the losses `policy` and `value` to the statistics of a layer whose experts were drawn.

    `losses` are those of the predictions in nats, without gradient, which the policy minimises.
    """
    policy = stats.policy
    if policy is None:
        return stats
    if policy.places is not None:
        policy = _of_all_places(policy, policy.places, losses)
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


def _of_all_places(policy: Policy, places: Int[Tensor, " T"], losses: Float[Tensor, " P"]) -> Policy:
    """Returns the policy with values that make both losses 0 where the layer saw no row.

    So these are means over all places, as the loss of the model is, whatever rows came along on which rank.
    """
    return policy._replace(
        log_probability=torch.zeros_like(losses).index_copy(0, places, policy.log_probability),
        baseline=losses.index_copy(0, places, policy.baseline),
    )
