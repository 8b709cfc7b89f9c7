"""Implements Adafactor (Shazeer and Stern, 1804.04235, algorithms 4 and 5) for parameters that are cut into boxes.

It is separate from optimizer.py because its updates are not elementwise: the second moments of a matrix are kept as
the means of its rows and columns, and an update is clipped and scaled by root mean squares, all of the whole parameter,
wherever its boxes are. torch.optim.Adafactor handles only whole tensors, adds epsilon1 elsewhere and has neither a
first moment nor a bound on the decay. The conventions are those of mesh-tensorflow (T5, Switch) and lingvo (GShard,
GLaM):

- a stack of experts is factored expert by expert, while its root mean squares are those of the whole stack;
- a parameter that is not a matrix, or is narrower than `factor_from`, keeps a second moment for every element;
- the first moment, if there is one, averages updates after clipping and scaling;
- weight decay multiplies the parameter by 1 - weight_decay * step size (fairseq, transformers).

n rows, m columns, E experts of this rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.checkpoint.layout import Shard
from moe_train.config.kinds.optim import AdafactorConfig
from moe_train.optim.groups import groups_by_decay
from moe_train.parallel.axis import Axis
from moe_train.parallel.mesh import Mesh


@dataclass(frozen=True)
class _Parameter:
    """Holds one parameter, its state, and the options of its group."""

    shard: Shard
    state: dict[str, Tensor]
    group: dict[str, Any]
    is_factored: bool

    @property
    def grad(self) -> Tensor:
        assert self.shard.data.grad is not None
        return self.shard.data.grad

    @property
    def num_rows(self) -> int:
        return self.shard.global_shape[-2]

    @property
    def num_elements(self) -> int:
        return torch.Size(self.shard.global_shape).numel()


class Adafactor(torch.optim.Optimizer):
    """Runs Adafactor. A step is collective and overwrites the gradients, since factoring is to save memory."""

    def __init__(self, config: AdafactorConfig, *, shards: Mapping[str, Shard], mesh: Mesh) -> None:
        super().__init__(groups_by_decay(shards, config.weight_decay), {"lr": config.lr})
        self.config, self.mesh = config, mesh
        self.grad_scale: Tensor | None = None
        """Divisor of the gradients, as in torch's fused optimizers; None: 1."""
        by_id = {id(shard.data): shard for shard in shards.values()}
        self._parameters = [
            self._begin(by_id[id(data)], group) for group in self.param_groups for data in group["params"]
        ]

    def _begin(self, shard: Shard, group: dict[str, Any]) -> _Parameter:
        data, own_shape = shard.data, shard.global_shape[1 if shard.is_expert else 0 :]
        is_factored = len(own_shape) == 2 and min(own_shape) >= self.config.factor_from
        state = {"step": torch.zeros((), dtype=torch.float32)}
        if is_factored:
            state["row"] = data.new_zeros(data.shape[:-1])
            state["column"] = data.new_zeros(*data.shape[:-2], data.shape[-1])
        else:
            state["square"] = torch.zeros_like(data)
        if self.config.beta1:
            state["exp_avg"] = torch.zeros_like(data)
        self.state[data] = state
        return _Parameter(shard, state, group, is_factored)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters once."""
        assert closure is None
        columns = [self._gather_squares(parameter) for parameter in self._parameters]
        sizes = self._sum_over_ranks(columns, [parameter.shard.data for parameter in self._parameters])
        for parameter, column in zip(self._parameters, columns, strict=True):
            self._normalise(parameter, column)
        updates = self._sum_over_ranks([], [parameter.grad for parameter in self._parameters])
        for parameter, size, update in zip(self._parameters, sizes, updates, strict=True):
            self._apply(parameter, size, update)

    def _gather_squares(self, parameter: _Parameter) -> Tensor | None:
        """Counts the update and averages the squared gradient; returns this rank's column sums if it is factored."""
        state, grad = parameter.state, parameter.grad
        if self.grad_scale is not None:
            grad.div_(self.grad_scale)
        state["step"] += 1
        squares = grad.square().add_(self.config.epsilon1)
        if parameter.is_factored:
            state["row"].lerp_(squares.mean(-1), 1 - self._decay(parameter))
            return squares.sum(-2).double()
        state["square"].lerp_(squares, 1 - self._decay(parameter))
        return None

    def _normalise(self, parameter: _Parameter, column: Tensor | None) -> None:
        """Divides the gradient by the root of the second moment   # alg. 4: V = R C / (1^T R), U = G / sqrt(V)."""
        state, grad = parameter.state, parameter.grad
        if column is None:
            grad.mul_(state["square"].rsqrt())
            return
        state["column"].lerp_((column / parameter.num_rows).to(grad.dtype), 1 - self._decay(parameter))
        # The mean of the rows' means equals that of the columns', which every rank has.
        mean = state["column"].mean(-1, keepdim=True)
        # Separate roots: R / mean underflows for a row without a gradient beside large ones, and 0 / sqrt(0) is NaN.
        row_factors = state["row"].rsqrt().mul_(mean.sqrt())
        grad.mul_(row_factors.unsqueeze(-1)).mul_(state["column"].rsqrt().unsqueeze(-2))

    def _apply(self, parameter: _Parameter, size: Tensor, update: Tensor) -> None:
        """Clips, scales and subtracts the update; `size` and `update` are mean squares of parameter and update."""
        config, group, data = self.config, parameter.group, parameter.shard.data
        lr = group["lr"]
        if config.relative_step:
            lr = min(lr, parameter.state["step"].item() ** -0.5)
        scale = size.sqrt().clamp_min(config.epsilon2) * lr if config.scale_parameter else size.new_tensor(lr)
        excess = update.sqrt() / config.clip_threshold if config.clip_threshold else update.new_zeros(())
        change = parameter.grad.mul_(scale / excess.clamp_min(1.0))
        if config.beta1:
            change = parameter.state["exp_avg"].lerp_(change, 1 - config.beta1)
        if group["weight_decay"]:
            data.mul_(1 - group["weight_decay"] * scale)
        data.sub_(change)

    def _decay(self, parameter: _Parameter) -> float:
        """Returns beta2 of this update   # sec. 7.2: 1 - t^-0.8; GLaM bounds it by 0.99."""
        decay = 1 - parameter.state["step"].item() ** -self.config.decay_exponent
        return min(decay, self.config.beta2_max) if self.config.beta2_max is not None else decay

    def _sum_over_ranks(self, columns: Sequence[Tensor | None], values: Sequence[Tensor]) -> Tensor:
        """Completes the column sums in place, and returns the mean squares of whole parameters. Collective.

        A group that shards weights holds different rows of a matrix; of an expert, only its replicas in there do.
        """
        owned = [parameter.shard.is_owner for parameter in self._parameters]
        squares = torch.stack(
            [_sum_of_squares(value) * own for value, own in zip(values, owned, strict=True)]
        )
        if self.mesh.data.size > 1:
            parts = list(zip(self._parameters, columns, strict=False))
            shared = [part for owner, part in parts if part is not None and not owner.shard.is_expert]
            expert = [part for owner, part in parts if part is not None and owner.shard.is_expert]
            if self.mesh.sharding.copy.size == 1:
                _sum_together([squares, *shared], self.mesh.data)
            else:
                _sum_together([squares], self.mesh.data)
                _sum_together(shared, self.mesh.sharding.shard)
            _sum_together(expert, self.mesh.expert_sharding.shard)
        return squares / squares.new_tensor([parameter.num_elements for parameter in self._parameters])


def _sum_of_squares(values: Tensor) -> Float[Tensor, ""]:
    """Returns the sum of squares in float64, of rows that are short enough for fp32: see norm.py."""
    if values.ndim == 0 or values.numel() == 0:
        return values.double().square().sum()
    return torch.linalg.vector_norm(values, dim=-1).double().square().sum()


def _sum_together(parts: Sequence[Tensor], axis: Axis) -> None:
    """Sums float64 tensors over an axis, in place, in one collective."""
    if axis.size == 1 or not parts:
        return
    flat = axis.sum(torch.cat([part.reshape(-1) for part in parts]))
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))
