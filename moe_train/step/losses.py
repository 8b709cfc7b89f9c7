"""The losses of one update: all passes over this rank's microbatches, and the backward pass of each.

A total is the objective's loss plus the auxiliary losses of every MoE layer in every pass, each times its coefficient,
which a guard may have scaled (controls.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moe_train.controls import Controls, of_loss
from moe_train.data.batch import Batch
from moe_train.model.forward import Forward
from moe_train.model.logits import Logits, cross_entropies
from moe_train.model.model import ModelOutput
from moe_train.moe.policy import rewarded
from moe_train.moe.whole_batch import batch_sums, of_whole_batch, watched_over_batch
from moe_train.objectives.objective import TrainingLoss
from moe_train.parallel.axis import Axis
from moe_train.results import MoEStats

Backward = Callable[[Tensor, bool], None]
"""Takes a part of the rank's mean loss, and whether it is the update's last."""


@dataclass(frozen=True)
class UpdateLosses:
    """What one update's passes gave on this rank, without gradient."""

    microbatches: list[TrainingLoss]
    stats: tuple[tuple[MoEStats, ...], ...]
    """Per microbatch and pass, per MoE layer."""

    def means(self) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, ""]]]:
        """Returns means over microbatches (and passes): the task loss, and each other loss, summed over layers."""
        others: dict[str, Tensor] = {}

        def add(name: str, loss: Tensor) -> None:
            others[name] = others.get(name, torch.zeros_like(loss)) + loss

        for loss in self.microbatches:
            for name, part in loss.parts.items():
                add(name, part / len(self.microbatches))
        for layers in self.stats:
            for layer in layers:
                for name, auxiliary in layer.losses.items():
                    add(name, auxiliary / len(self.stats))
        return torch.stack([loss.task for loss in self.microbatches]).mean(), others


@dataclass(frozen=True)
class LossPasses:
    """Runs the passes of updates."""

    forward: Forward
    training_loss: Callable[[Sequence[Logits], Batch], TrainingLoss]
    """The objective's."""
    num_passes: int
    learns_from_batch: bool
    """A router has a loss of the global batch as one set of tokens, with a coefficient."""
    data: Axis
    """Whose workers have the microbatches of the global batch."""

    def run(
        self, batches: Sequence[Batch], step: int, backward: Backward, controls: Controls
    ) -> UpdateLosses:
        """Calls `backward` once for each microbatch. Collective."""
        shares = len(batches) * self.data.size
        sums = self._batch_sums(batches, step) if len(batches) > 1 and self.learns_from_batch else None
        losses: list[TrainingLoss] = []
        stats: list[tuple[MoEStats, ...]] = []
        for index, batch in enumerate(batches):
            passes = [
                _rewarded(self.forward(batch, step, number), batch) for number in range(self.num_passes)
            ]
            if len(batches) == 1 < shares:
                sums = batch_sums(self.data, [output.moe for output in passes], self.num_passes)
            if sums is not None:
                passes = [
                    output._replace(moe=of_whole_batch(output.moe, of_pass, shares))
                    for output, of_pass in zip(passes, sums, strict=True)
                ]
            loss = self.training_loss([output.logits for output in passes], batch)
            total = loss.total + sum(
                _auxiliary(layer, controls, step) for output in passes for layer in output.moe
            )
            backward(total / len(batches), index == len(batches) - 1)
            losses.append(loss.detached())
            stats.extend(tuple(_detached(layer) for layer in output.moe) for output in passes)
        if sums is None and shares > 1:
            stats = watched_over_batch(self.data, stats, self.num_passes)
        return UpdateLosses(losses, tuple(stats))

    @torch.no_grad()
    def _batch_sums(self, batches: Sequence[Batch], step: int) -> Tensor:
        """Returns the sums of the batch's losses, by a forward pass over every microbatch before any has a gradient.

        Draws are functions of the step and the sequence, so these passes route as those with gradient do. Collective.
        """
        stats = [
            self.forward(batch, step, number).moe for batch in batches for number in range(self.num_passes)
        ]
        return batch_sums(self.data, stats, self.num_passes)


def _rewarded(output: ModelOutput, batch: Batch) -> ModelOutput:
    """Returns a pass whose routers have their reward, where any learns by it."""
    if all(layer.policy is None for layer in output.moe):
        return output
    with torch.no_grad():
        losses = cross_entropies(output.logits, batch.targets).flatten()
    return output._replace(moe=tuple(rewarded(layer, losses) for layer in output.moe))


def _auxiliary(stats: MoEStats, controls: Controls, step: int) -> Tensor | int:
    """Returns a layer's auxiliary losses, each times its coefficient and the factor of its control."""
    return sum(
        stats.coefficients[name] * controls.factor(of_loss(name), step) * loss
        for name, loss in stats.losses.items()
    )


def _detached(stats: MoEStats) -> MoEStats:
    """Returns the same statistics without the graph behind the losses."""
    return stats._replace(
        losses={name: loss.detach() for name, loss in stats.losses.items()},
        batch_losses={
            name: part._replace(totals=part.totals.detach()) for name, part in stats.batch_losses.items()
        },
    )
