"""Makes megatron-core's tensor-parallel layers stand in for torch's: same weights, same calls, same results.

They are asked for products and, where sequences are whole, for the sum behind rows and for vectors of tokens. Their own
sequence parallelism needs Megatron's global process groups, and CUDA; their backward pass on CPUs knows no autocast. So
what is cut by sequence goes over our collectives (distribute/boundary.py), and weights are cast before a product, as by
autocast. An input that several matrices read is shared by whoever calls these: its gradient is summed once for all.
B sequences, S tokens, D model width, F features of this rank, V rows of this rank, W tokens of the vocabulary.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_train.distribute.boundary import Between, enter, leave, look_up
from moe_train.model.logits import VocabularyPart
from moe_train.moe.layers.layer import compute_dtype
from moe_train.parallel.axis import Axis

with warnings.catch_warnings(
    action="ignore", category=UserWarning
):  # Transformer Engine and Apex are not needed
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
    )


class _CastProduct:
    """Computes products in the precision of autocast, which Megatron's backward pass on CPUs does not know."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        dtype = compute_dtype(input)
        product: Tensor = super()._forward_impl(  # type: ignore[misc]
            input.to(dtype), weight.to(dtype), *args, **options
        )
        return product


class Columns(_CastProduct, ColumnParallelLinear):
    """Stands in for a matrix of which each rank computes other features, from an input that the caller has shared."""

    def __init__(self, whole: nn.Linear, tensor: Axis) -> None:
        super().__init__(
            whole.in_features, whole.out_features, bias=False, disable_grad_reduce=True, **_options(tensor)
        )

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... F"]:
        """Returns this rank's features."""
        features: Tensor = super().forward(x)[0]
        return features


class Rows(_CastProduct, RowParallelLinear):
    """Stands in for a matrix of which each rank reads other features; the ranks' results are summed to `states`."""

    def __init__(self, whole: nn.Linear, tensor: Axis, states: Between) -> None:
        is_cut = states.sequences.cut_by.size > 1
        # An expert's matrix is one whose sum Megatron leaves to the caller.
        super().__init__(
            whole.in_features,
            whole.out_features,
            bias=False,
            input_is_parallel=True,
            is_expert=is_cut,
            skip_bias_add=is_cut,
            **_options(tensor),
        )
        self.tensor, self.states, self.is_cut = tensor, states, is_cut

    def forward(self, x: Float[Tensor, "... F"]) -> Float[Tensor, "... D"]:
        """Returns the sum over the ranks, or this rank's share of it. Collective."""
        result: Tensor = super().forward(x)[0]
        assert self.tensor.devices is not None
        return leave(result, self.tensor.devices, self.states) if self.is_cut else result


class Embedding(VocabParallelEmbedding):
    """Stands in for an embedding of which each rank has other rows; the ranks' results are summed to `states`."""

    def __init__(self, width: int, part: VocabularyPart, states: Between) -> None:
        super().__init__(part.rows * part.axis.size, width, **_options(part.axis))
        self.part, self.states = part, states

    def forward(self, tokens: Int[Tensor, "B S"]) -> Float[Tensor, "B S_of_rank D"]:
        """Returns the vectors of tokens, or this rank's share of them. Collective."""
        if not self.states.sequences.are_cut:
            vectors: Tensor = super().forward(tokens)
            return vectors
        assert self.part.axis.devices is not None
        own = look_up(tokens, self.weight, self.part.axis.rank)
        return leave(own, self.part.axis.devices, self.states)


class CutScores(_CastProduct, ColumnParallelLinear):
    """Computes the logits of this rank's tokens by its rows of a matrix that it is given, padding left out."""

    def __init__(self, width: int, part: VocabularyPart, states: Between) -> None:
        super().__init__(
            width,
            part.rows * part.axis.size,
            bias=False,
            disable_grad_reduce=True,
            skip_weight_param_allocation=True,
            **_options(part.axis),
        )
        self.part, self.states = part, states

    def forward(self, x: Float[Tensor, "B S D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "B S W"]:
        """Returns the scores of every place, of whole sequences. Collective."""
        assert self.part.axis.devices is not None
        scores: Tensor = super().forward(enter(x, self.part.axis.devices, self.states), weight=weight)[0]
        return scores[..., : self.part.count]


def _options(tensor: Axis) -> dict[str, Any]:
    """Returns what all layers are made with: our process group, and weights without values on the current device."""
    config = ModelParallelConfig(
        tensor_model_parallel_size=tensor.size,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        params_dtype=torch.float32,
    )
    return {"config": config, "init_method": nn.init.zeros_, "tp_group": tensor.group}
