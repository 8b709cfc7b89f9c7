"""Styles for `parallelize_module` where torch's own do not fit: embedding, logits, and weights that are no matrix.

torch's style for an embedding makes the gradient of all rows on every rank, and none knows rows of padding, or that
activations are cut in one pass and whole in the next.
B sequences, S tokens, D model width, V rows of this rank.
"""

from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, RowwiseParallel

from moe_train.distribute.boundary import Between, enter, leave, look_up
from moe_train.model.logits import VocabularyPart


class WholeInputs(ParallelStyle):
    """Gives a module whole inputs, marked once for all matrices that read them: then one collective sums a gradient."""

    def __init__(self, *given: Between | None) -> None:
        super().__init__()
        self.given = given

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(partial(self._gather, device_mesh))
        return module

    def _gather(self, devices: DeviceMesh, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            x if between is None else _whole(x, devices, between.placement)
            for x, between in zip(inputs, self.given, strict=True)
        )


def _whole(x: Tensor, devices: DeviceMesh, placement: Placement) -> DTensor:
    marked = DTensor.from_local(x, devices, [placement], run_check=False)
    return marked if placement == Replicate() else marked.redistribute(placements=[Replicate()])


class SumOutputs(RowwiseParallel):
    """Cuts a matrix by columns, and sums the ranks' products to what lies between the parts."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.between = between

    def _prepare_output_fn(  # type: ignore[override]
        self, layouts: Any, use_local: bool, module: nn.Module, products: DTensor, devices: DeviceMesh
    ) -> Tensor:
        return products.redistribute(placements=[self.between.placement], async_op=True).to_local()


class CutWeights(ParallelStyle):
    """Cuts a module's own weights along `dim`; its `forward` sees this rank's part of them as plain tensors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            cut = distribute_tensor(parameter, device_mesh, [Shard(self.dim)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(cut))
        module.register_forward_pre_hook(_show_parts)
        module.register_forward_hook(_hide_parts, always_call=True)
        return module


def _show_parts(module: nn.Module, inputs: Any) -> None:
    """Sets attributes to the local parts: an instance's own attributes come before its registered parameters."""
    for name, parameter in module.named_parameters(recurse=False):
        assert isinstance(parameter, DTensor)
        module.__dict__[name] = parameter.to_local()


def _hide_parts(module: nn.Module, inputs: Any, output: Any) -> None:
    for name, _ in module.named_parameters(recurse=False):
        module.__dict__.pop(name, None)


class CutEmbedding(CutWeights):
    """Cuts an embedding by vocabulary: each rank looks its own tokens up, and the parts are summed to `output`."""

    def __init__(self, output: Between) -> None:
        super().__init__(dim=0)
        self.output = output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        super()._apply(module, device_mesh)
        module.forward = partial(self._embed, module, device_mesh)
        return module

    def _embed(
        self, module: nn.Module, devices: DeviceMesh, tokens: Int[Tensor, "B S"]
    ) -> Float[Tensor, "B S_of_rank D"]:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return leave(look_up(tokens, weight, devices.get_local_rank()), devices, self.output)


class CutLogits(ParallelStyle):
    """Computes the logits of this rank's tokens by its rows of the matrix, without those of padding at their end."""

    def __init__(self, part: VocabularyPart, states: Between) -> None:
        super().__init__()
        self.part, self.states = part, states

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(partial(self._own_part, device_mesh))
        return module

    def _own_part(
        self, devices: DeviceMesh, module: nn.Module, inputs: tuple[Tensor, DTensor]
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "V D"]]:
        """Returns the states, whose gradient is summed over the ranks, and this rank's rows of the matrix."""
        states, weight = inputs
        return enter(states, devices, self.states), weight.to_local()[: self.part.count]
