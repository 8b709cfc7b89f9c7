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
from moe_train.parallel.axis import sum_together
from moe_train.parallel.mesh import Mesh


@dataclass(frozen=True)
class _Parameter:
    """Holds one parameter, its state, and the options of its group."""

    shard: Shard
    state: dict[str, Tensor]
    group: dict[str, Any]
    is_factored: bool

    @property
    def has_cut_columns(self) -> bool:
        """Returns whether this rank has only a part of each of its rows: of some matrices, with tensor parallelism."""
        return self.is_factored and self.shard.data.shape[-1] < self.num_columns

    @property
    def grad(self) -> Tensor:
        assert self.shard.data.grad is not None
        return self.shard.data.grad

    @property
    def num_columns(self) -> int:
        return self.shard.global_shape[-1]

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
        sums = [self._gather_squares(parameter) for parameter in self._parameters]
        self._sum_over_cut_rows([row for row, _ in sums])
        sizes = self._sum_over_ranks(
            [column for _, column in sums], [parameter.shard.data for parameter in self._parameters]
        )
        for parameter, (row, column) in zip(self._parameters, sums, strict=True):
            self._average(parameter, row, column)
        for parameter, mean in zip(self._parameters, self._means(), strict=True):
            self._normalise(parameter, mean)
        updates = self._sum_over_ranks([], [parameter.grad for parameter in self._parameters])
        for parameter, size, update in zip(self._parameters, sizes, updates, strict=True):
            self._apply(parameter, size, update)

    def _gather_squares(self, parameter: _Parameter) -> tuple[Tensor | None, Tensor | None]:
        """Counts the update and averages the squared gradient where that needs no other rank.

        Returns this rank's sums of rows and of columns, where other ranks may have to complete them.
        """
        state, grad = parameter.state, parameter.grad
        if self.grad_scale is not None:
            grad.div_(self.grad_scale)
        state["step"] += 1
        squares = grad.square().add_(self.config.epsilon1)
        if not parameter.is_factored:
            state["square"].lerp_(squares, 1 - self._decay(parameter))
            return None, None
        columns = squares.sum(-2).double()
        if parameter.has_cut_columns:
            return squares.sum(-1).double(), columns
        state["row"].lerp_(squares.mean(-1), 1 - self._decay(parameter))
        return None, columns

    def _average(self, parameter: _Parameter, row: Tensor | None, column: Tensor | None) -> None:
        """Averages the completed sums of squares."""
        for key, sums, of in (("row", row, -1), ("column", column, -2)):
            if sums is not None:
                state, number = parameter.state[key], parameter.shard.global_shape[of]
                state.lerp_((sums / number).to(state.dtype), 1 - self._decay(parameter))

    def _means(self) -> list[Tensor | None]:
        """Returns the mean second moment of each factored matrix: that of the columns' means, as that of the rows'.

        Collective if some rank has only a part of the columns.
        """
        columns = [parameter.state.get("column") for parameter in self._parameters]
        cut = [
            column.double().sum(-1, keepdim=True)
            if parameter.has_cut_columns and column is not None
            else None
            for parameter, column in zip(self._parameters, columns, strict=True)
        ]
        self._sum_over_cut_rows(cut)
        means: list[Tensor | None] = []
        for parameter, column, total in zip(self._parameters, columns, cut, strict=True):
            if column is None or total is None:
                means.append(None if column is None else column.mean(-1, keepdim=True))
            else:
                means.append((total / parameter.num_columns).to(column.dtype))
        return means

    def _normalise(self, parameter: _Parameter, mean: Tensor | None) -> None:
        """Divides the gradient by the root of the second moment   # alg. 4: V = R C / (1^T R), U = G / sqrt(V)."""
        state, grad = parameter.state, parameter.grad
        if mean is None:
            grad.mul_(state["square"].rsqrt())
            return
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

        Of a matrix, ranks hold different rows, or copies, of which the owner's count. Where tensor parallelism cuts the
        columns, only the ranks that shard the same part hold other rows of the same columns. Of an expert these are
        replicas, and the ranks among which its hidden width is cut.
        """
        owned = [parameter.shard.is_owner for parameter in self._parameters]
        squares = torch.stack(
            [_sum_of_squares(value) * own for value, own in zip(values, owned, strict=True)]
        )
        whole: list[Tensor] = [squares]
        cut: list[Tensor] = []
        of_experts: tuple[list[Tensor], list[Tensor]] = ([], [])  # with whole columns, and with cut ones
        for parameter, part in zip(self._parameters, columns, strict=False):
            if part is None:
                continue
            if parameter.shard.is_expert:
                of_experts[parameter.has_cut_columns].append(part)
            elif parameter.has_cut_columns:
                cut.append(part)
            else:
                whole.append(part.mul_(parameter.shard.is_owner))
        sum_together(whole, self.mesh.world.everyone)
        sum_together(cut, self.mesh.sharding.shard)
        sum_together([*of_experts[False], *of_experts[True]], self.mesh.expert_sharding.shard)
        sum_together(of_experts[False], self.mesh.expert_tensor)
        return squares / squares.new_tensor([parameter.num_elements for parameter in self._parameters])

    def _sum_over_cut_rows(self, sums: Sequence[Tensor | None]) -> None:
        """Completes sums over the columns of matrices whose columns are cut, in place. Collective."""
        for is_expert, axis in ((False, self.mesh.tensor), (True, self.mesh.expert_tensor)):
            parts = [
                part
                for parameter, part in zip(self._parameters, sums, strict=True)
                if part is not None and parameter.shard.is_expert == is_expert
            ]
            sum_together(parts, axis)


def _sum_of_squares(values: Tensor) -> Float[Tensor, ""]:
    """Returns the sum of squares in float64, of rows that are short enough for fp32: see norm.py."""
    if values.ndim == 0 or values.numel() == 0:
        return values.double().square().sum()
    return torch.linalg.vector_norm(values, dim=-1).double().square().sum()
