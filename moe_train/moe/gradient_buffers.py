"""Keeps gradients of stacked weights as long as the weights, for experts whose gradients nothing else owns."""

import torch
from torch import nn


class GradientBuffers:
    """Holds persistent `.grad` tensors of stacked weights, written by the matrix products of the backward pass.

    The first backward pass after `reset` overwrites, later ones add: nothing is ever filled with zeros first.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.tensors = [torch.empty_like(parameter) for parameter in parameters]
        self.is_fresh = True
        for parameter, tensor in zip(parameters, self.tensors, strict=True):
            parameter.grad = tensor

    def reset(self) -> None:
        """Does what `zero_grad` does for other parameters."""
        self.is_fresh = True
