"""Defines the operators of load balancing: moe_kernels::limit_capacity, ::balance_loss, ::update_bias.

T tokens, K choices, E experts, G groups of consecutive tokens. reference/balance.py is their twin. All are local to
the rank; counts of several ranks are summed (all_reduce) before they come here.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.launch import launch
from moe_kernels.library import MAX_EXPERTS, MoeCapacity
from moe_kernels.reference import balance as reference
from moe_kernels.select import choose


class Limited(NamedTuple):
    """Holds the result of a capacity limit."""

    kept: Tensor
    """[T, K] int32: the expert ids, -1 where the edge was dropped (or was none)."""
    positions: Tensor
    """[T, K] int32: place in the expert's queue of that group; `capacity` or more where dropped, -1 for no edge."""
    drops: Tensor
    """[G, E] int32: edges dropped."""


def limit_capacity(
    expert_ids: Tensor,
    num_experts: int,
    capacity: int,
    *,
    group_tokens: int | None = None,
    priorities: Tensor | None = None,
) -> Limited:
    """Keeps the first `capacity` edges of each expert in each group of `group_tokens` tokens (None: one group).

    All first choices come before any second one; among equal choices higher `priorities` [T] come first (None: by
    position; batch-prioritised routing passes each token's best score), among equal ones the earlier token.
    `expert_ids` [T, K] int32 are at least -1 (no edge) and below `num_experts`. Raises KernelError for sizes that do
    not fit.
    """
    num_tokens = expert_ids.shape[0]
    group_tokens = max(num_tokens, 1) if group_tokens is None else group_tokens
    if not 1 <= num_experts <= MAX_EXPERTS or group_tokens < 1 or capacity < 0:
        raise KernelError(
            f"num_experts={num_experts}, group_tokens={group_tokens}, capacity={capacity}; they must "
            f"be between 1 and {MAX_EXPERTS}, at least 1, and at least 0"
        )
    if priorities is not None:
        if priorities.shape != (num_tokens,):
            raise KernelError(
                f"priorities have the shape {tuple(priorities.shape)}; {num_tokens} tokens need "
                f"({num_tokens},)"
            )
        priorities = priorities.detach().float()
    return Limited(*_limit_capacity(expert_ids.int(), priorities, num_experts, group_tokens, capacity))


def balance_loss(loads: Tensor, importance: Tensor, num_tokens: int) -> Tensor:
    """Returns E * sum_i f_i * P_i, [] float32   # Switch (2101.03961) eq. 4.

    f_i = loads_i / sum(loads), the share of all choices, without gradient; P_i = importance_i / num_tokens, the mean
    score. For the loss of a global batch, sum the loads [E] int32 over ranks and pass the local importance [E] and
    number of tokens: the mean of the ranks' losses is then the batch's. 0 without loads or tokens.
    """
    return _balance_loss(loads.int(), importance, num_tokens)[0]


def update_bias(bias: Tensor, loads: Tensor, rate: float) -> Tensor:
    """Returns bias_i + rate * sign(mean(loads) - loads_i), [E] float32   # loss-free balancing (2408.15664) alg. 1."""
    return _update_bias(bias, loads.int(), rate)


@torch.library.custom_op("moe_kernels::limit_capacity", mutates_args=())
def _limit_capacity(
    expert_ids: Tensor, priorities: Tensor | None, num_experts: int, group_tokens: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    expert_ids = expert_ids.contiguous()
    library = choose(expert_ids.device.type).library
    if library is None:
        return reference.limit_capacity(expert_ids, priorities, num_experts, group_tokens, capacity)
    num_tokens, num_choices = expert_ids.shape
    limit = MoeCapacity(num_tokens, num_experts, num_choices, group_tokens, capacity, torch.get_num_threads())
    outputs = _verdict(expert_ids, num_experts, group_tokens)
    scratch = expert_ids.new_empty(library.moe_capacity_workspace_bytes(limit), dtype=torch.uint8)
    priorities = None if priorities is None else priorities.contiguous()
    device = expert_ids.device
    launch(library, "moe_limit_capacity", device, limit, expert_ids, priorities, *outputs, scratch)
    return outputs


@_limit_capacity.register_fake
def _(
    expert_ids: Tensor, priorities: Tensor | None, num_experts: int, group_tokens: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _verdict(expert_ids, num_experts, group_tokens)


def _verdict(expert_ids: Tensor, num_experts: int, group_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates kept, positions and drops."""
    num_groups = (expert_ids.shape[0] + group_tokens - 1) // group_tokens
    return (
        expert_ids.new_empty(expert_ids.shape),
        expert_ids.new_empty(expert_ids.shape),
        expert_ids.new_empty(num_groups, num_experts),
    )


@torch.library.custom_op("moe_kernels::balance_loss", mutates_args=())
def _balance_loss(loads: Tensor, importance: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    library = choose(importance.device.type).library
    if library is None:
        return reference.balance_loss(loads, importance, num_tokens)
    loads, importance = loads.contiguous(), importance.contiguous()
    loss, slopes = importance.new_empty(()), torch.empty_like(importance)
    sizes = (importance.numel(), num_tokens)
    launch(library, "moe_balance_loss", importance.device, *sizes, loads, importance, loss, slopes)
    return loss, slopes


@_balance_loss.register_fake
def _(loads: Tensor, importance: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    return importance.new_empty(()), importance.new_empty(importance.shape)


def _keep_slopes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, slopes = output
    ctx.mark_non_differentiable(slopes)
    ctx.save_for_backward(slopes)


def _grad_importance(ctx: Any, grad_loss: Tensor, _slopes: None) -> tuple[None, Tensor, None]:
    (slopes,) = ctx.saved_tensors
    return None, grad_loss * slopes, None


_balance_loss.register_autograd(_grad_importance, setup_context=_keep_slopes)


@torch.library.custom_op("moe_kernels::update_bias", mutates_args=())
def _update_bias(bias: Tensor, loads: Tensor, rate: float) -> Tensor:
    library = choose(bias.device.type).library
    if library is None:
        return reference.update_bias(bias, loads, rate)
    bias, loads = bias.contiguous(), loads.contiguous()
    updated = torch.empty_like(bias)
    launch(library, "moe_update_bias", bias.device, bias.numel(), rate, loads, bias, updated)
    return updated


@_update_bias.register_fake
def _(bias: Tensor, loads: Tensor, rate: float) -> Tensor:
    return bias.new_empty(bias.shape)
