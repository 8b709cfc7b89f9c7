"""Defines what a layer and an update return: plain data, below all that use it.

T tokens, L MoE layers, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

LOAD = "load"
"""Name of the count of each expert's assignments."""


class Policy(NamedTuple):
    """Holds what a router that drew its experts needs to learn from the reward: see moe/policy.py."""

    log_probability: Float[Tensor, " T"]
    """Of the expert that was drawn for each token; with gradient."""
    baseline: Float[Tensor, " T"]
    """The loss that was to be expected; with gradient."""
    coefficient: float
    """Factor of the policy's loss in the total."""
    value_coefficient: float
    """Factor of the baseline's loss in the total."""
    places: Int[Tensor, " T"] | None = None
    """The batch's places that these tokens have (moe/rows.py); None: all, in order."""


class SetLoss(NamedTuple):
    """Holds a loss of sums over sets of tokens: see moe/losses.py."""

    totals: Float[Tensor, "G N"]
    """The sums over each of G sets; with gradient."""
    of_totals: Callable[[Float[Tensor, "G N"]], Float[Tensor, ""]]
    """The loss of these sums, a mean over sets."""
    is_part: bool
    """The sums are those of one share of the global batch, of which all tokens are one set."""

    @property
    def value(self) -> Float[Tensor, ""]:
        """Returns the loss of the tokens at hand."""
        return self.of_totals(self.totals)


class MoEStats(NamedTuple):
    """Holds the statistics of one forward pass of one MoE layer over this rank's tokens.

    A tuple, because FSDP2 looks for the tensors of a module's output in tuples and dicts: it must find the losses,
    whose backward pass needs the module's weights gathered.
    """

    counts: dict[str, Tensor]
    """By name, what moe/figures.py says that layers count: a number, or one for each expert; without gradient."""
    losses: dict[str, Float[Tensor, ""]]
    """Auxiliary losses by name, unscaled, a mean over this rank's sets of tokens; with gradient."""
    coefficients: dict[str, float]
    """Factor of each auxiliary loss in the total."""
    policy: Policy | None = None
    """Of a router that learns by reward, until it has it."""
    batch_losses: Mapping[str, SetLoss] = MappingProxyType({})
    """Those of `losses` that are losses of the global batch, until moe/whole_batch.py has summed it up."""

    @property
    def load(self) -> Int[Tensor, " E"]:
        """Assignments to each expert before the capacity limit."""
        return self.counts[LOAD]


def counts_of_layers(layers: Sequence[MoEStats], name: str) -> Shaped[Tensor, "L ..."]:
    """Stacks a count of all layers, with zeros for the experts that a layer has fewer than another."""
    counts = [layer.counts[name] for layer in layers]
    return pad_sequence(counts, batch_first=True) if counts[0].ndim else torch.stack(counts)


@dataclass(frozen=True)
class StepResult:
    """Holds the result of one update. Numbers are global: the same on every rank and every layout, up to rounding."""

    step: int
    """Updates made so far, this one included."""
    lr: float
    grad_norm: float
    """Global norm before clipping, every parameter counted once."""
    loss: Float[Tensor, ""]
    """Task loss in nats per token, without auxiliary losses: this rank's mean, not yet reduced."""
    losses: Mapping[str, Float[Tensor, ""]]
    """Auxiliary losses, unscaled, summed over MoE layers: this rank's mean, not yet reduced."""
    stats: tuple[tuple[MoEStats, ...], ...]
    """Per microbatch and pass, per MoE layer: this rank's, not yet reduced."""
    tokens: int
    """Tokens of the global batch."""
    passes: int
    """Forward passes over each of them."""
    stop: bool
    """Some rank was requested to stop; all ranks see the same answer at the same step."""
    mean_loss: float
    """The task loss over all ranks."""
    is_skipped: bool
    """A gradient was not finite, so the update was skipped: parameters, moments and routers are as before."""
    gradients: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the gradients by their key in a row (monitor/gradients.py), where they were asked for."""
