"""What a recipe may say about `optim` and `optim.schedule`: one dataclass a kind; see kind.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class ScheduleConfig(KindConfig):
    """Base of all learning-rate schedules: linear warm-up from 0, then the kind's own curve."""

    warmup_steps: int = 0

    @property
    def spans_run(self) -> bool:
        """Whether the curve depends on the number of steps of the run."""
        return False


@dataclass
class ConstantScheduleConfig(ScheduleConfig):
    """The peak rate after warm-up."""

    kind: str = "constant"


@dataclass
class CosineScheduleConfig(ScheduleConfig):
    """Half a cosine from the peak to `final_fraction` of it at the last step."""

    kind: str = "cosine"
    final_fraction: float = 0.1

    @property
    def spans_run(self) -> bool:
        return True


@dataclass
class LinearScheduleConfig(ScheduleConfig):
    """A straight line from the peak to `final_fraction` of it at the last step."""

    kind: str = "linear"
    final_fraction: float = 0.0

    @property
    def spans_run(self) -> bool:
        return True


@dataclass
class InverseSqrtScheduleConfig(ScheduleConfig):
    """peak * sqrt(max(warmup, 1) / max(step, warmup, 1)) (T5, Switch)."""

    kind: str = "inverse_sqrt"


@dataclass
class OptimConfig(KindConfig):
    """What all optimizers share."""

    lr: float = 1e-3  # peak
    weight_decay: float = 0.0  # decoupled in adamw, L2 in sgd; not on norms
    clip: float | None = 1.0  # largest global gradient norm; null: no clipping
    schedule: ScheduleConfig = field(default_factory=CosineScheduleConfig)

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
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


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW (1711.05101)."""

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        for key, value in (("optim.beta1", self.beta1), ("optim.beta2", self.beta2)):
            if not 0 <= value < 1:
                yield Problem(key, value, "must be in [0, 1)", "use 0.9 for beta1 and 0.95 for beta2")
        if self.epsilon <= 0:
            yield Problem("optim.epsilon", self.epsilon, "must be above 0", "use 1e-8")


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent, with momentum if asked."""

    kind: str = "sgd"
    momentum: float = 0.0

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        if not 0 <= self.momentum < 1:
            yield Problem("optim.momentum", self.momentum, "must be in [0, 1)", "use 0.9, or 0 for none")
