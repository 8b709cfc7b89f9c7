"""Decides what to do about copies that workers hold of parameters, buffers and optimizer state: they must be equal.

In training a difference ends the attempt, for what follows from it has no meaning. Without that, a save records it.
"""

from typing import Any

from moe_train.checkpoint.layout import alone
from moe_train.checkpoint.replicas import Difference, Replicas
from moe_train.engines.engine import Engine
from moe_train.errors import TrainingError
from moe_train.parallel.world import World

SHOWN = 3


class Copies:
    """Compares the copies of one engine. Both methods are collective."""

    def __init__(self, world: World, engine: Engine, every: int) -> None:
        self._world, self._engine, self._every = world, engine, every
        self._replicas = Replicas(world)

    def require_equal(self, step: int) -> None:
        """Raises TrainingError, on all ranks, with the tensors and ranks whose copies differ after `step` updates."""
        if differences := self._differences():
            more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise TrainingError(
                f"parallel.check_every={self._every}: workers must hold equal copies, but after step {step} "
                f"{'; '.join(map(str, differences[:SHOWN]))}{more}; resume from the newest checkpoint, whose copies "
                "were equal, and if it comes back, look for a faulty device, or for a plug-in whose result depends on "
                "the rank; parallel.check_every=0 trains on regardless"
            )

    def record(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint says of copies. Raises like `require_equal` if that is on."""
        if self._every:
            self.require_equal(step)
            return {"differences": []}
        return {"differences": [str(difference) for difference in self._differences()]}

    def _differences(self) -> list[Difference]:
        if self._world.size == 1:
            return []
        # An engine's state may hold another copy of a parameter than the one that the model uses.
        used = alone({f"model.{name}": shard for name, shard in self._engine.shards.items()})
        return self._replicas.differences({**self._engine.state(), **used})
