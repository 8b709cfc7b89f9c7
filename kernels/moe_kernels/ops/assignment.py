"""Defines moe_kernels::balanced_assignment: every expert gets its fair share of a group's tokens, by best total score.

G groups, S tokens of a group, E experts. Only the CPU has a kernel: paths are found one after another, which is no
work for a GPU, so tensors of other devices are brought to the host and back.
"""

import torch
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.launch import launch
from moe_kernels.reference import assignment as reference
from moe_kernels.select import choose


def balanced_assignment(scores: Tensor) -> Tensor:
    """Returns the expert of every token, [G, S] int32: at most S / E (rounded up) each, with the best total per group.

    Exact in float64, without gradient, and each group by itself. Scores [G, S, E] that are not finite count as the
    smallest of their group. On CUDA this waits for the device. Raises KernelError for another shape.
    """
    if scores.ndim != 3 or scores.shape[2] < 1:
        raise KernelError(f"scores have the shape {list(scores.shape)}; give [groups, tokens, experts]")
    return _balanced_assignment(scores.detach().float())


@torch.library.custom_op("moe_kernels::balanced_assignment", mutates_args=())
def _balanced_assignment(scores: Tensor) -> Tensor:
    host = scores.cpu().contiguous()
    groups, tokens, experts = host.shape
    library = choose("cpu").library
    if library is None or not hasattr(library, "moe_assign_balanced"):
        return reference.balanced_assignment(host).to(scores.device)
    expert_ids = torch.empty(groups, tokens, dtype=torch.int32)
    sizes = (groups, tokens, experts, torch.get_num_threads())
    launch(library, "moe_assign_balanced", host.device, *sizes, host, expert_ids)
    return expert_ids.to(scores.device)


@_balanced_assignment.register_fake
def _(scores: Tensor) -> Tensor:
    return scores.new_empty(scores.shape[:2], dtype=torch.int32)
