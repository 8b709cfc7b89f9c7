"""Lets DeepSpeed run on fake tensors, so that a trace has its own buckets, buffers and collectives.

DeepSpeed asks two things of tensors that fake ones refuse. Neither has a value that a trace could use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def fake_tensors_answer_deepspeed() -> Iterator[None]:
    """Answers where a tensor begins in memory, and leaves models where they are, for the duration of a block.

    ZeRO checks that ranges begin at multiples of four bytes, and moves the model to a device on which it is already.
    """
    move = nn.Module.to

    def stay(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        is_fake = any(isinstance(parameter, FakeTensor) for parameter in module.parameters())
        return module if is_fake else move(module, *args, **kwargs)

    nn.Module.to = stay  # type: ignore[method-assign, assignment]
    FakeTensor.data_ptr = lambda self: 0  # type: ignore[method-assign]
    try:
        yield
    finally:
        del FakeTensor.data_ptr
        nn.Module.to = move  # type: ignore[method-assign]
