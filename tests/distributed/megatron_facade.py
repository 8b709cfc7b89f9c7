"""Lets megatron-core, which names CUDA devices in its code, run on CPU tensors. For tests alone, and for timing.

Nothing of megatron-core is edited: attributes of torch.cuda and of three of its modules are replaced, and put back.
What computes or communicates stays its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange")
"""Functions of torch that megatron-core calls with device="cuda"."""


class Stream:
    """Stands for a CUDA stream, on a device where everything is finished when its call returns."""

    def wait_stream(self, stream: "Stream") -> None:
        """Waits for nothing."""

    def record_event(self) -> "Stream":
        """Returns an event that has happened."""
        return self

    def synchronize(self) -> None:
        """Waits for nothing."""


@contextmanager
def on_cpu() -> Iterator[None]:
    """Makes megatron-core build and train models on the CPU inside of the block."""
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    cpu, stream = torch.device("cpu"), Stream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: cpu)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda: stream)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor)
        patch.setattr(torch.cuda, "manual_seed", torch.manual_seed)
        patch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
        patch.setattr(random, "_get_cuda_rng_state", lambda *args, **kwargs: torch.get_rng_state())
        patch.setattr(
            random, "_set_cuda_rng_state", lambda state, *args, **kwargs: torch.set_rng_state(state)
        )
        for name in FACTORIES:
            patch.setattr(torch, name, _without_cuda(getattr(torch, name)))
        # Release 0.16.1 reads the name, and defines it only where TransformerEngine is installed.
        patch.setattr(moe_utils, "te_general_gemm", None, raising=False)
        # It makes numbers of the rows of an exchange only if they are CUDA tensors; torch takes no tensors there.
        patch.setattr(token_dispatcher, "maybe_move_tensor_to_cpu", _to_numbers)
        yield


def _without_cuda(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Returns the factory, which makes on the CPU what it is asked to make on a CUDA device."""

    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return made


def _to_numbers(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor
