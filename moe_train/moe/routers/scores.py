"""Shares code of routers with a learned gate: jitter, logits, softmax and its k largest, and its figures.

Where torch's operations do it, scores are kept expert by expert ([E, T]): over few experts a softmax is many times
faster along a leading dim. T tokens, D model width, E experts, K choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_kernels.library import MAX_CHOICES, MAX_EXPERTS
from moe_kernels.ops.router import router_statistics
from moe_kernels.select import choose
from moe_train.moe.losses import TokenSets, z_loss
from moe_train.moe.routing import RouteContext, RouterFigures

SMALLEST = torch.finfo(torch.float32).tiny


def jittered(x: Float[Tensor, "T D"], size: float, site: str, context: RouteContext) -> Float[Tensor, "T D"]:
    """Returns x * U(1 - size, 1 + size), elementwise, in training only   # mesh-tensorflow's `_switch_gating`."""
    if not context.training or size == 0:
        return x
    draws = context.uniform(f"{site}.jitter", x.shape[1])
    return x * draws.mul_(2 * size).add_(1 - size)


def partly_zeroed(
    x: Float[Tensor, "T D"], rate: float, site: str, context: RouteContext
) -> Float[Tensor, "T D"]:
    """Applies dropout in training only: elements are 0 with probability `rate`, others divided by 1 - rate."""
    if not context.training or rate == 0:
        return x
    draws = context.uniform(f"{site}.dropout", x.shape[1])
    return x * (draws >= rate).float().div_(1 - rate)


def gate_logits(x: Float[Tensor, "T D"], weight: Float[Tensor, "D E"]) -> Float[Tensor, "T E"]:
    """Computes x W in fp32; call it with autocast off."""
    return F.linear(x.float(), weight.float().t())


@dataclass(frozen=True)
class Choice:
    """Holds the softmax of a router's logits, and the choices that follow."""

    probabilities: Float[Tensor, "T E"]
    expert_ids: Int[Tensor, "T K"]
    """Those with the largest logits, largest first."""
    weights: Float[Tensor, "T K"]
    """Their probabilities, not renormalised."""
    z: Float[Tensor, ""]
    """The z-loss."""
    figures: RouterFigures


def softmax_choice(logits: Float[Tensor, "T E"], k: int, groups: TokenSets | None = None) -> Choice:
    """Takes the softmax over the experts and its k largest; ties go to the lower index.

    On the CPU one kernel does it, forward and backward (moe_kernels, `router`); without one, on other devices, beyond
    the kernel's sizes and with padding or absent rows `by_operations` does. Both choose by the logits, so alike.
    """
    groups = groups or TokenSets(1)
    tokens, experts = logits.shape
    is_small = experts <= MAX_EXPERTS and k <= MAX_CHOICES and tokens > 0
    if logits.device.type != "cpu" or not is_small or not groups.are_whole or choose("cpu").library is None:
        return by_operations(logits, k, groups)
    statistics = router_statistics(logits, k)
    probabilities = statistics.scores.detach()
    # The kernel chooses nothing (-1) among logits that are not numbers; the loss, not a number either, reports it.
    first = torch.arange(k, device=logits.device)
    expert_ids = statistics.expert_ids.long()
    expert_ids = torch.where(expert_ids < 0, first, expert_ids)
    entropy = -torch.dot(probabilities.flatten(), probabilities.clamp(min=SMALLEST).log_().flatten())
    figures = RouterFigures(
        entropy,
        statistics.weights[:, 0].detach().sum(),
        statistics.z.detach(),
        _logit_square(logits.detach()).sum(),
    )
    return Choice(statistics.scores, expert_ids, statistics.weights, statistics.z / tokens, figures)


def by_operations(logits: Float[Tensor, "T E"], k: int, groups: TokenSets | None = None) -> Choice:
    """Computes `softmax_choice` by torch's operations, one after another."""
    groups = groups or TokenSets(1)
    by_expert = logits.t().contiguous()
    log_probabilities = torch.log_softmax(by_expert, dim=0)
    probabilities = log_probabilities.exp()
    expert_ids = largest(by_expert.detach(), k)[1]
    weights = probabilities.t().gather(1, expert_ids)
    z = z_loss(logits, groups)
    figures = _figures(probabilities, log_probabilities, (logits,), groups.is_real)
    return Choice(probabilities.t(), expert_ids, weights, z, figures)


def largest(scores: Float[Tensor, "E T"], k: int) -> tuple[Float[Tensor, "T K"], Int[Tensor, "T K"]]:
    """Returns the k largest of each token, largest first; ties go to the lower index (`topk` does not promise that)."""
    if k == 1:
        values, expert_ids = scores.max(0)
        return values.unsqueeze(1), expert_ids.unsqueeze(1)
    left = scores.detach().clone()
    chosen = []
    for _ in range(k):
        chosen.append(left.max(0).indices)
        left.scatter_(0, chosen[-1].unsqueeze(0), -torch.inf)
    expert_ids = torch.stack(chosen)
    return scores.gather(0, expert_ids).t(), expert_ids.t()


@torch.no_grad()
def figures_of(
    expert_logits: Float[Tensor, "T E"],
    softmaxes: Sequence[Float[Tensor, "T _"]],
    is_real: Bool[Tensor, " T"] | None,
) -> RouterFigures:
    """Returns the figures of a router with the logits of its `softmaxes`, and a logit for each expert."""
    log_probabilities = torch.log_softmax(expert_logits.t().contiguous(), dim=0)
    return _figures(log_probabilities.exp(), log_probabilities, softmaxes, is_real)


@torch.no_grad()
def _figures(
    probabilities: Float[Tensor, "E T"],
    log_probabilities: Float[Tensor, "E T"],
    softmaxes: Sequence[Float[Tensor, "T _"]],
    is_real: Bool[Tensor, " T"] | None,
) -> RouterFigures:
    """Returns the figures of a router whose softmax over all experts is known already."""
    if is_real is not None:
        probabilities = probabilities * is_real
    entropy = -torch.dot(probabilities.flatten(), log_probabilities.flatten())
    by_token = [
        torch.stack([logits.logsumexp(1).square(), _logit_square(logits)], dim=1) for logits in softmaxes
    ]
    z, logit_square = torch.stack(by_token).sum(0).unbind(1)
    if is_real is not None:
        z, logit_square = z * is_real, logit_square * is_real
    return RouterFigures(entropy, probabilities.amax(0).sum(), z.sum(), logit_square.sum() / len(softmaxes))


def _logit_square(logits: Float[Tensor, "T N"]) -> Float[Tensor, " T"]:
    """Returns the mean square of each token's logits, less their mean."""
    return (logits - logits.mean(1, keepdim=True)).square_().mean(1)
