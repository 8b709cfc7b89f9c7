"""When a run that failed is started again: patience is counted in failures without a new checkpoint."""

from dataclasses import dataclass

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


@dataclass
class Restarts:
    """Counts failures in a row; a checkpoint that is newer than at the last failure starts the count afresh."""

    limit: int
    """Restarts in a row without a new checkpoint."""
    in_a_row: int = 0
    saved_step: int = -1
    """Newest checkpoint at the last failure; -1: none."""

    def after_failure(self, saved_step: int) -> float | None:
        """Seconds to wait before the next attempt; None if there is none. `saved_step`: the newest checkpoint, or -1.

        The first restart comes at once; each one more in a row waits twice as long as the one before.
        """
        if saved_step > self.saved_step:
            self.in_a_row = 0
        self.saved_step = max(self.saved_step, saved_step)
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            return None
        return 0.0 if self.in_a_row == 1 else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self.in_a_row - 2))
