"""Holds the options of `moe.router.kind=dense_to_sparse`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.router.expectations import Expectations
from moe_train.config.kinds.router.router import BalanceLossConfig, BalanceOver, capacity_must_be_null
from moe_train.config.problem import Problem


@dataclass
class DenseToSparseRouterConfig(BalanceLossConfig):
    """Configures EvoMoE (2112.14397): an optional phase with one expert, of which all become copies; then its gate.

    The gate begins with all experts and uses one from `hard_step` on. `num_choices` is this final 1; before that, the
    logged load shows how many experts a token had.
    """

    validation_follows_step: ClassVar[bool] = True

    kind: str = "dense_to_sparse"
    diversify_steps: int = 0  # updates of expert 0 alone, after which all become copies of it; 0: none
    diversify_mask: float = 0.1  # share of a copy's weights that are zeroed, others in each copy
    temperature_start: float = 2.0
    temperature_end: float = 0.3
    decay: Literal["linear", "exponential"] = "linear"
    decay_steps: int = 500  # updates of the gate from the first temperature to the last
    threshold: float = 0.001  # experts with a smaller gate are left out
    hard_step: int | None = 500  # updates of the gate after which a token has one expert; null: never
    gate: Literal["gumbel", "softmax"] = "gumbel"  # weight: with noise and temperature, or without
    balance_coefficient: float = 0.0  # the paper found no use for it
    balance_over: BalanceOver = "batch"  # the code: all tokens that come to the layer

    def draws_in_training(self, num_experts: int) -> bool:
        return num_experts > 1

    def expectations(self) -> Expectations:
        """Expects nothing of the phase with one expert, and other figures once a token has one expert."""
        hard = () if self.hard_step is None else (self.diversify_steps + self.hard_step,)
        return Expectations(begins=self.diversify_steps, changes=hard)

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from capacity_must_be_null(recipe)
        yield from self._check_phase(recipe)
        for key, temperature in (
            ("temperature_start", self.temperature_start),
            ("temperature_end", self.temperature_end),
        ):
            if temperature <= 0:
                yield Problem(
                    f"moe.router.{key}", temperature, "must be above 0", "the paper goes from 2.0 to 0.3"
                )
        if self.temperature_end > self.temperature_start:
            yield Problem(
                "moe.router.temperature_end",
                self.temperature_end,
                f"must be at most moe.router.temperature_start={self.temperature_start}, or the gate becomes denser "
                "during training",
                "the paper goes from 2.0 to 0.3; the same value twice keeps it as it is",
            )
        phase = self.diversify_steps if 0 <= self.diversify_steps < recipe.steps else 0
        gate_steps, most = recipe.steps - phase, f"the run's steps={recipe.steps}"
        if phase:
            most = f"{gate_steps}, {most} less moe.router.diversify_steps={phase}"
        if not 1 <= self.decay_steps <= gate_steps:
            yield Problem(
                "moe.router.decay_steps",
                self.decay_steps,
                f"must be between 1 and {most}, or the last temperature is never reached",
                f"set moe.router.decay_steps to at most {gate_steps}, or raise steps",
            )
        if self.hard_step is not None and not 0 <= self.hard_step <= gate_steps:
            yield Problem(
                "moe.router.hard_step",
                self.hard_step,
                f"must be between 0 and {most}, or the gate never becomes sparse",
                f"set moe.router.hard_step to at most {gate_steps}, or to null for a gate that stays as it is",
            )
        if not 0 <= self.threshold < 1 / recipe.moe.num_experts:
            yield Problem(
                "moe.router.threshold",
                self.threshold,
                f"must be in [0, 1 / moe.num_experts), or a token whose {recipe.moe.num_experts} gates are equal has "
                "no expert",
                "use 0.001",
            )

    def _check_phase(self, recipe: Facts) -> Iterator[Problem]:
        if not 0 <= self.diversify_steps < recipe.steps:
            yield Problem(
                "moe.router.diversify_steps",
                self.diversify_steps,
                f"must be at least 0 and below the run's steps={recipe.steps}, or there is never more than one expert",
                "set moe.router.diversify_steps to a tenth of the steps, or to 0 for no such phase",
            )
        if not 0 < self.diversify_mask < 1:
            yield Problem(
                "moe.router.diversify_mask",
                self.diversify_mask,
                "must be above 0 and below 1, or all copies of the first expert are the same",
                "use 0.1",
            )

    def notes(self, recipe: Facts) -> Iterator[str]:
        phase, experts = self.diversify_steps, recipe.moe.num_experts
        if phase:
            yield (
                f"moe.router.diversify_steps={phase}: until step {phase} all tokens go to expert 0 (with "
                "parallel.expert, to the worker that has it), and the others show as dead; then all "
                f"{experts} become copies of it, each with {self.diversify_mask:.0%} of its weights zeroed"
            )
        until = f"until step {phase + self.hard_step}" if self.hard_step is not None else "to the end"
        since = f"from step {phase} {until}" if phase else until
        yield (
            f"moe.router.kind={self.kind}: FLOPs and active parameters are those of one expert per token; "
            f"{since} a token has up to {experts}, and the logged load says how many it had"
        )
