"""Says which workers have a part of every sequence between the blocks of a model: sequence parallelism.

Training and validation cut sequences. Translation does not, since a prefix grows by one token at a time, and no number
of workers divides every length: there the workers of a tensor group have whole sequences, as without sequence
parallelism. Weights lie the same both ways.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from moe_train.parallel.axis import Axis


class Sequences:
    """Belongs to a model; its stacks, and what gathers and cuts their activations, ask it in each pass."""

    def __init__(self, workers: Axis | None = None) -> None:
        self.cut_by = workers or Axis()
        """Workers that have one part each; one worker: sequences are never cut."""
        self._is_whole = False

    @property
    def workers(self) -> Axis:
        """Returns the workers that have one part each in this pass."""
        return Axis() if self._is_whole else self.cut_by

    @property
    def are_cut(self) -> bool:
        """Returns whether each worker has a part in this pass."""
        return self.workers.size > 1

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Leaves sequences whole inside of a `with` statement, where nothing may need a gradient."""
        before, self._is_whole = self._is_whole, True
        try:
            yield
        finally:
            self._is_whole = before
