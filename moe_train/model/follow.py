"""Reports which layer a pass through a model has reached, forward and backward, for whoever watches a worker.

Most collectives of a pass are torch's own, started where no code of ours is: in a backward pass, by FSDP2's hooks, by
DTensor. The layer says whose they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from moe_train.model.model import Model

Report = Callable[[str], None]
"""Takes a layer's name in the model: "layers.3"; "scores" are the logits, and what the loss makes of them."""


def follow(model: Model, report: Report) -> None:
    """Calls `report` as a pass comes to the embedding, to each block, and to the logits, in either direction.

    Must come last: FSDP2 gathers a block's weights in hooks of its own, and that is to be reported as this block's.
    """
    names = {module: name for name, module in model.named_modules()}
    for module in (model.embedding, *model.blocks, model.scores):
        module.register_forward_pre_hook(partial(_enter, report, names[module]), prepend=True)
        module.register_forward_hook(partial(_await_backward, report, names[module]), prepend=True)


def _enter(report: Report, name: str, module: nn.Module, inputs: Any) -> None:
    report(name)


def _await_backward(report: Report, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """Has the gradient of a layer's output report the layer. Changes nothing about it."""
    states = output[0] if isinstance(output, tuple) else output
    if isinstance(states, Tensor) and states.requires_grad:
        states.register_hook(lambda _: report(name))
