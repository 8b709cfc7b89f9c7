"""Gradients of stacked weights that live as long as the weights, for experts whose gradients nobody else owns."""

import torch
from torch import nn


class GradientBuffers:
    """Persistent `.grad` tensors of stacked weights, written by the matrix products of the backward pass.

    The first backward pass after `reset` overwrites, later ones add: nothing is ever filled with zeros first.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.tensors = [torch.empty_like(parameter) for parameter in parameters]
        self.is_fresh = True
        for parameter, tensor in zip(parameters, self.tensors, strict=True):
            parameter.grad = tensor

    def reset(self) -> None:
        """What `zero_grad` is for other parameters."""
        self.is_fresh = True
