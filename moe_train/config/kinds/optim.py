"""Defines the sections `optim` and `optim.schedule`: one dataclass per kind; see kind.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem


@dataclass
class ScheduleConfig(KindConfig):
    """Is the base of all learning-rate schedules: linear warm-up from 0, then the kind's own curve."""

    warmup_steps: int = 0

    @property
    def spans_run(self) -> bool:
        """Returns whether the curve depends on the number of steps of the run."""
        return False


@dataclass
class ConstantScheduleConfig(ScheduleConfig):
    """Keeps the peak rate after warm-up."""

    kind: str = "constant"


@dataclass
class CosineScheduleConfig(ScheduleConfig):
    """Follows half a cosine from the peak to `final_fraction` of it at the last step."""

    kind: str = "cosine"
    final_fraction: float = 0.1

    @property
    def spans_run(self) -> bool:
        return True

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from _final_fraction(self.final_fraction)


@dataclass
class LinearScheduleConfig(ScheduleConfig):
    """Falls linearly from the peak to `final_fraction` of it at the last step."""

    kind: str = "linear"
    final_fraction: float = 0.0

    @property
    def spans_run(self) -> bool:
        return True

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from _final_fraction(self.final_fraction)


def _final_fraction(value: float) -> Iterator[Problem]:
    if not 0 <= value <= 1:
        yield Problem(
            "optim.schedule.final_fraction", value, "must be in [0, 1]", "use 0.1, or 0 to end at a rate of 0"
        )


@dataclass
class InverseSqrtScheduleConfig(ScheduleConfig):
    """Holds the peak for `hold_steps` after warm-up, then peak * sqrt(k / step), k = warmup + hold (T5, GLaM)."""

    kind: str = "inverse_sqrt"
    hold_steps: int = 0  # updates at the peak; T5 and GLaM: 10000, without warm-up

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.hold_steps < 0:
            yield Problem(
                "optim.schedule.hold_steps",
                self.hold_steps,
                "must be at least 0",
                "use 0, or 10000 as T5 does",
            )


@dataclass
class OptimConfig(KindConfig):
    """Is the base of all optimizers."""

    lr: float = 1e-3  # peak
    weight_decay: float = 0.0  # decoupled in adamw and adafactor, L2 in sgd; not on norms
    clip: float | None = 1.0  # largest global gradient norm; null: no clipping
    schedule: ScheduleConfig = field(default_factory=CosineScheduleConfig)

    @property
    def is_elementwise(self) -> bool:
        """Returns whether an element's update depends on that element's gradients alone."""
        return True

    def state_elements(self, held: tuple[int, ...], whole: tuple[int, ...]) -> int:
        """Returns the fp32 numbers kept for the box `held` of a parameter of shape `whole`, of experts that of one."""
        return 0

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.lr <= 0:
            yield Problem("optim.lr", self.lr, "must be above 0", "set optim.lr, for example 1e-3")
        if self.weight_decay < 0:
            yield Problem(
                "optim.weight_decay", self.weight_decay, "must be at least 0", "use 0.1, or 0 for none"
            )
        if self.clip is not None and self.clip <= 0:
            yield Problem(
                "optim.clip", self.clip, "must be above 0", "set optim.clip=1.0, or null for no clipping"
            )
        if not self.schedule.warmup_steps >= 0:
            yield Problem(
                "optim.schedule.warmup_steps", self.schedule.warmup_steps, "must be at least 0", "use 0"
            )


SMALLEST_EPSILON = 1.2e-38
"""The smallest normal number of fp32: a smaller one can become 0, and a gradient of 0 is then divided by 0."""


def _epsilon(key: str, value: float, default: str) -> Iterator[Problem]:
    if value < SMALLEST_EPSILON:
        yield Problem(key, value, f"must be above 0 in fp32: at least {SMALLEST_EPSILON}", f"use {default}")


@dataclass
class AdamWConfig(OptimConfig):
    """Configures AdamW (1711.05101)."""

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def state_elements(self, held: tuple[int, ...], whole: tuple[int, ...]) -> int:
        return 2 * prod(held) + 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        for key, value in (("optim.beta1", self.beta1), ("optim.beta2", self.beta2)):
            if not 0 <= value < 1:
                yield Problem(key, value, "must be in [0, 1)", "use 0.9 for beta1 and 0.95 for beta2")
        yield from _epsilon("optim.epsilon", self.epsilon, "1e-8")


@dataclass
class AdafactorConfig(OptimConfig):
    """Configures Adafactor (1804.04235), which keeps second moments by rows and columns. Defaults are T5's."""

    kind: str = "adafactor"
    lr: float = 1e-2
    clip: float | None = None  # beside the clipping of each update
    beta1: float = 0.0  # 0: no first moment is kept
    decay_exponent: float = 0.8  # the second moments' decay at update t is 1 - t^-decay_exponent
    beta2_max: float | None = None  # at most this; GLaM: 0.99
    clip_threshold: float | None = 1.0  # largest root mean square of a parameter's update; null: none
    scale_parameter: bool = True  # steps are relative to the root mean square of the parameter
    relative_step: bool = False  # lr at update t is at most 1 / sqrt(t)
    epsilon1: float = 1e-30  # added to squared gradients
    epsilon2: float = 1e-3  # smallest root mean square of a parameter that scales a step
    factor_from: int = 128  # a matrix with a narrower side is not factored; 1: all are

    @property
    def is_elementwise(self) -> bool:
        return False

    def state_elements(self, held: tuple[int, ...], whole: tuple[int, ...]) -> int:
        is_factored = len(whole) == 2 and min(whole) >= self.factor_from
        squares = prod(held[:-1]) + prod(held[:-2]) * held[-1] if is_factored else prod(held)
        return squares + (prod(held) if self.beta1 else 0) + 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if not 0 <= self.beta1 < 1:
            yield Problem("optim.beta1", self.beta1, "must be in [0, 1)", "use 0 for no first moment, or 0.9")
        if self.decay_exponent <= 0:
            yield Problem("optim.decay_exponent", self.decay_exponent, "must be above 0", "use 0.8")
        if self.beta2_max is not None and not 0 < self.beta2_max < 1:
            yield Problem(
                "optim.beta2_max", self.beta2_max, "must be between 0 and 1", "use 0.99, or null for no bound"
            )
        if self.clip_threshold is not None and self.clip_threshold <= 0:
            yield Problem(
                "optim.clip_threshold",
                self.clip_threshold,
                "must be above 0",
                "use 1.0, or null for no clipping",
            )
        yield from _epsilon("optim.epsilon1", self.epsilon1, "1e-30")
        yield from _epsilon("optim.epsilon2", self.epsilon2, "1e-3")
        if self.factor_from < 1:
            yield Problem(
                "optim.factor_from", self.factor_from, "must be at least 1", "use 128, or 1 for all"
            )


@dataclass
class SGDConfig(OptimConfig):
    """Configures stochastic gradient descent, optionally with momentum."""

    kind: str = "sgd"
    momentum: float = 0.0

    def state_elements(self, held: tuple[int, ...], whole: tuple[int, ...]) -> int:
        return prod(held) if self.momentum else 0

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if not 0 <= self.momentum < 1:
            yield Problem("optim.momentum", self.momentum, "must be in [0, 1)", "use 0.9, or 0 for none")
