"""Calls functions of a kernel library: on the current stream of a GPU, or at once on the CPU."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from moe_kernels.errors import KernelError


def launch(library: ctypes.CDLL, name: str, device: torch.device, *arguments: Any) -> None:
    """Calls `name` with `arguments`; tensors are passed by address and must be contiguous.

    On CUDA this only enqueues. Raises KernelError if the library refuses or the launch fails.
    """
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    status = enqueue(library, name, device, *values)
    if status != 0:
        raise KernelError(
            f"{name} returned {status}; see csrc/interface.h for its limits and the meaning of this status"
        )


def enqueue(library: ctypes.CDLL, name: str, device: torch.device, *values: Any) -> int:
    """Calls `name` with `values` and the current stream of `device`, and returns its status."""
    function = getattr(library, name)
    if device.type != "cuda":
        return function(*values, None)
    with torch.cuda.device(device):
        return function(*values, torch.cuda.current_stream(device).cuda_stream)


def is_capturing(device: torch.device) -> bool:
    """Returns whether what is enqueued now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
