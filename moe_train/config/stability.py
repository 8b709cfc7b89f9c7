"""Defines the section `stability`: what a run does about non-finite gradients and loss spikes."""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.problem import Problem


@dataclass
class StabilityConfig:
    """Configures GLaM's two tricks (2112.06905, sec. 5.1); without them a run ends at the first non-finite gradient."""

    skip_non_finite: bool = (
        False  # skip an update if any gradient is NaN or infinite; step and data still advance
    )
    skip_limit: int = 10  # updates left out in a row after which the run rolls back, or ends
    rollback: bool = (
        False  # on a loss spike, resume from an earlier checkpoint with the batches that come next
    )
    spike_window: int = (
        200  # losses, one an update, whose median and spread say what is a spike; none before that
    )
    spike_threshold: float = 6.0  # a loss this many median absolute deviations above the median is a spike
    spike_patience: int = 3  # spikes in a row that make a rollback
    rollback_margin: int = 10  # updates between the checkpoint and the first spike at least
    rollback_limit: int = 3  # rollbacks after which the next one ends the run

    def check(self, checkpoint_every: int, keep_last: int) -> Iterator[Problem]:
        """Yields what makes this unusable with checkpoints every so many steps, of which the last ones are kept."""
        for key, lowest in (
            ("skip_limit", 1),
            ("spike_window", 2),
            ("spike_patience", 1),
            ("rollback_margin", 0),
            ("rollback_limit", 1),
        ):
            value = getattr(self, key)
            if value < lowest:
                yield Problem(
                    f"stability.{key}",
                    value,
                    f"must be at least {lowest}",
                    f"its default is {getattr(StabilityConfig, key)}",
                )
        if self.spike_threshold <= 0:
            yield Problem("stability.spike_threshold", self.spike_threshold, "must be above 0", "use 6")
        if self.rollback:
            yield from self._needs_checkpoints(checkpoint_every, keep_last)

    def _needs_checkpoints(self, every: int, keep_last: int) -> Iterator[Problem]:
        if every < 1:
            yield Problem(
                "stability.rollback",
                "true",
                f"needs checkpoints to go back to, but checkpoint.every={every} writes none before the end",
                "set checkpoint.every=100, or stability.rollback=false",
            )
            return
        bad = max(self.spike_patience, self.skip_limit if self.skip_non_finite else 1)
        # This many checkpoints may be written after the newest one that is old enough, up to the last bad update.
        newer = 1 + (bad - 1 + self.rollback_margin) // every
        if 0 < keep_last <= newer:
            yield Problem(
                "checkpoint.keep_last",
                keep_last,
                f"may leave none that is stability.rollback_margin={self.rollback_margin} updates older than the first "
                f"of {bad} bad ones in a row, with checkpoint.every={every}",
                f"set checkpoint.keep_last={newer + 1} or more, or 0 to keep all",
            )
