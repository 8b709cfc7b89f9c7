"""Defines moe_kernels::router: scores, choices, loads, importance and z-loss in one pass over a router's logits.

T tokens, E experts, K choices. What each output means stands in csrc/interface.h; reference/router.py is its twin.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.launch import launch
from moe_kernels.library import MAX_CHOICES, MAX_EXPERTS, SIGMOID, SOFTMAX, MoeRouter
from moe_kernels.reference import router as reference
from moe_kernels.select import choose

SCORES = {"softmax": SOFTMAX, "sigmoid": SIGMOID}


class RouterStatistics(NamedTuple):
    """Holds a router's decisions, and the sums for its losses. Everything is local to the rank."""

    scores: Tensor
    """[T, E] float32."""
    expert_ids: Tensor
    """[T, K] int32, best first; -1 where no expert was left to choose."""
    weights: Tensor
    """[T, K] float32: the scores of the chosen experts, not renormalised; 0 where there is none."""
    loads: Tensor
    """[E] int32: edges of each expert."""
    importance: Tensor
    """[E] float32: sum of its scores over tokens."""
    z: Tensor
    """[] float32: sum over tokens of logsumexp(logits)^2."""


def router_statistics(
    logits: Tensor, num_choices: int, *, score: str = "softmax", bias: Tensor | None = None
) -> RouterStatistics:
    """Routes T tokens by their logits [T, E], in float32.

    `bias` [E] is added to the scores for the choice only. Ties go to the lower expert, and a logit of -inf masks its
    expert. Gradients flow from scores, weights, importance and z. Sums are in fixed order: equal input, equal bits.
    Raises KernelError for more than 1024 experts or 8 choices, an unknown score, or shapes that do not fit.
    """
    num_experts = _checked(logits, num_choices, score)
    if bias is not None:
        if bias.shape != (num_experts,):
            raise KernelError(
                f"bias has the shape {tuple(bias.shape)}; with {num_experts} experts it must be "
                f"({num_experts},)"
            )
        bias = bias.detach().float()
    scores, expert_ids, weights, _, loads, importance, z = _router(logits.float(), bias, num_choices, score)
    return RouterStatistics(scores, expert_ids, weights, loads, importance, z)


def _checked(logits: Tensor, num_choices: int, score: str) -> int:
    """Returns the number of experts of arguments that fit."""
    if score not in SCORES:
        raise KernelError(f"score={score!r} is unknown; choose one of {', '.join(SCORES)}")
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise KernelError(
            f"logits are {logits.dtype} of shape {tuple(logits.shape)}; pass float32, bfloat16 or "
            f"float16 of shape (tokens, experts)"
        )
    num_experts = logits.shape[1]
    if not 1 <= num_experts <= MAX_EXPERTS or not 1 <= num_choices <= MAX_CHOICES:
        raise KernelError(
            f"num_experts={num_experts} and num_choices={num_choices}; they must be between 1 and "
            f"{MAX_EXPERTS} and between 1 and {MAX_CHOICES}"
        )
    return num_experts


@torch.library.custom_op("moe_kernels::router", mutates_args=())
def _router(
    logits: Tensor, bias: Tensor | None, num_choices: int, score: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = logits.contiguous()
    library = choose(logits.device.type).library
    if library is None:
        return reference.router(logits, bias, num_choices, score)
    work = _work(logits, num_choices, score)
    outputs = _outputs(logits, num_choices)
    scratch = logits.new_empty(library.moe_router_workspace_bytes(work), dtype=torch.uint8)
    bias = None if bias is None else bias.contiguous()
    launch(library, "moe_router_forward", logits.device, work, logits, bias, *outputs, scratch)
    return outputs


@_router.register_fake
def _(
    logits: Tensor, bias: Tensor | None, num_choices: int, score: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(logits, num_choices)


@torch.library.custom_op("moe_kernels::router_backward", mutates_args=())
def _router_backward(
    grad_scores: Tensor | None,
    grad_weights: Tensor | None,
    grad_importance: Tensor | None,
    grad_z: Tensor | None,
    logits: Tensor | None,
    scores: Tensor,
    expert_ids: Tensor,
    lse: Tensor,
    score: str,
) -> Tensor:
    grads = (grad_scores, grad_weights, grad_importance, grad_z)
    library = choose(scores.device.type).library
    if library is None:
        return reference.router_backward(*grads, logits, scores, expert_ids, lse, score)
    work = _work(scores, expert_ids.shape[1], score)
    dense = [None if grad is None else grad.contiguous() for grad in grads]
    result = torch.empty_like(scores)
    launch(
        library, "moe_router_backward", scores.device, work, *dense, logits, scores, expert_ids, lse, result
    )
    return result


@_router_backward.register_fake
def _(
    grad_scores: Tensor | None,
    grad_weights: Tensor | None,
    grad_importance: Tensor | None,
    grad_z: Tensor | None,
    logits: Tensor | None,
    scores: Tensor,
    expert_ids: Tensor,
    lse: Tensor,
    score: str,
) -> Tensor:
    return torch.empty_like(scores)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, _, ctx.score = inputs
    scores, expert_ids, _, lse, loads, _, _ = output
    ctx.mark_non_differentiable(expert_ids, lse, loads)
    ctx.set_materialize_grads(False)  # a gradient of zeros for the scores would be another [T, E] to read
    ctx.save_for_backward(logits.contiguous() if ctx.score == "sigmoid" else None, scores, expert_ids, lse)


def _grad_logits(ctx: Any, *grads_of_outputs: Tensor | None) -> tuple[Tensor, None, None, None]:
    grad_scores, _, grad_weights, _, _, grad_importance, grad_z = grads_of_outputs
    grads = (grad_scores, grad_weights, grad_importance, grad_z)
    return _router_backward(*grads, *ctx.saved_tensors, ctx.score), None, None, None


_router.register_autograd(_grad_logits, setup_context=_keep_for_backward)


def _work(rows: Tensor, num_choices: int, score: str) -> MoeRouter:
    return MoeRouter(*rows.shape, num_choices, SCORES[score], torch.get_num_threads())


def _outputs(
    logits: Tensor, num_choices: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocates scores, expert ids, weights, log sum exp, loads, importance and z."""
    num_tokens, num_experts = logits.shape
    return (
        logits.new_empty(num_tokens, num_experts),
        logits.new_empty(num_tokens, num_choices, dtype=torch.int32),
        logits.new_empty(num_tokens, num_choices),
        logits.new_empty(num_tokens),
        logits.new_empty(num_experts, dtype=torch.int32),
        logits.new_empty(num_experts),
        logits.new_empty(()),
    )
