"""Gives the training loop its view of checkpoints: save, poll, wait; choose, load, roll back.

Every rank has one and calls it at the same steps. Only `choose`, `load` and `roll_back` use collectives; a save, which
may run in a background thread, meets the other ranks through files. Read `save.py` and `load.py` next.
"""

import json
import logging
import threading
from pathlib import Path
from typing import Any

from moe_train.checkpoint import choose as choosing
from moe_train.checkpoint import lineage, retention, save
from moe_train.checkpoint.choose import Checkpoint, Request
from moe_train.checkpoint.folder import CheckpointFolder, explain, set_aside, write_durably
from moe_train.checkpoint.layout import ShardedState
from moe_train.checkpoint.load import check_experts, fill, refuse_other_model
from moe_train.checkpoint.rendezvous import Save
from moe_train.checkpoint.snapshot import HostBuffers, on_host
from moe_train.config.schema import CheckpointConfig
from moe_train.errors import CheckpointError
from moe_train.parallel.world import World

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and loads the checkpoints of one run, for one attempt.

    `record_start` of `lineage.py` must have been called for this attempt before the first save. `timeout_s`
    is how long a save waits for a silent rank; files are split above `max_file_bytes`.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        world: World,
        *,
        timeout_s: float = 600.0,
        max_file_bytes: int = 2 * 2**30,
    ) -> None:
        self._folder = CheckpointFolder(run_dir)
        self._config = config
        self._world = world
        self._timeout_s = timeout_s
        self._max_file_bytes = max_file_bytes
        self._buffers = HostBuffers(world.rank)
        self._number = 0
        # Steps that this attempt committed or resumed from: saving them again is pointless.
        self._own_steps: set[int] = set()
        self._committed: list[int] = []  # since the last poll
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, state: ShardedState, meta: dict[str, Any]) -> None:
        """Saves `state` and `meta` (JSON-ready, of rank 0) as `step`. Every rank calls it; not a collective.

        Waits for the previous save. A synchronous save returns when the checkpoint is committed, an asynchronous one
        when the state is copied and may be changed again. Raises CheckpointError, also for the previous save.
        """
        self.wait()
        if step in self._own_steps:
            return
        content = _plain(meta, step)
        assert not self._world.is_main or lineage.has_started(self._folder.run_dir, self._world.attempt)
        self._number += 1
        job = Save(
            self._folder,
            step,
            self._number,
            self._world.attempt,
            self._world.rank,
            self._world.size,
            self._timeout_s,
            self._max_file_bytes,
        )
        if self._config.asynchronous:
            arguments = (job, self._buffers.snapshot(state), content)
            self._thread = threading.Thread(
                target=self._run, args=arguments, name=f"save-{step}", daemon=True
            )
            self._thread.start()
        else:
            self._run(job, on_host(state), content)
            self.wait()

    def poll(self) -> list[int]:
        """Returns the steps committed since the last call. Cheap; raises an error of the background save."""
        if self._thread is None or not self._thread.is_alive():
            self.wait()
        committed, self._committed = self._committed, []
        return committed

    def wait(self, patience_s: float | None = None) -> None:
        """Waits until no save is running, or for `patience_s` seconds. Raises an error of the background save."""
        if self._thread is not None:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                logger.warning("A save is abandoned: it did not finish within %g s of an error.", patience_s)
                return
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def choose(self, request: Request) -> Checkpoint | None:
        """Returns the checkpoint to resume from: see `choose.py`. Collective."""
        return choosing.choose(self._folder, request, self._world)

    def load(self, checkpoint: Checkpoint, target: ShardedState) -> dict[str, Any]:
        """Fills `target` in place, whatever layout wrote it; returns the saved meta and `step`. Collective.

        Raises CheckpointError, on all ranks, if it is a checkpoint of another model, cannot be read, or if an expert
        is not the one saved under its global id.
        """
        refuse_other_model(checkpoint.manifest, target, self._world)
        failures = [
            failure
            for failure in self._world.gather(fill(checkpoint.path, checkpoint.manifest, target))
            if failure
        ]
        if failures:
            raise CheckpointError(failures[0])
        check_experts(checkpoint.manifest, target, self._world)
        self._own_steps.add(checkpoint.step)
        return {**checkpoint.manifest.meta, "step": checkpoint.step}

    def roll_back(self, newest: int, target: ShardedState) -> dict[str, Any] | None:
        """Loads the newest good checkpoint up to step `newest` and moves later ones aside. Collective.

        Returns and raises like `load`; returns None and changes nothing if there is no such checkpoint.
        """
        self.wait()
        checkpoint = choosing.choose(self._folder, "latest", self._world, newest)
        if checkpoint is None:
            return None
        meta = self.load(checkpoint, target)
        if self._world.is_main:
            self._abandon_after(checkpoint.step)
        self._world.barrier()
        self._own_steps = {step for step in self._own_steps if step <= checkpoint.step}
        return meta

    def steps(self) -> list[int]:
        """Returns the steps this attempt may resume from, ascending."""
        return lineage.eligible_steps(self._folder, self._world.attempt)

    def _run(self, job: Save, state: ShardedState, meta: dict[str, Any]) -> None:
        try:
            save.run(job, state, meta)
        except Exception as error:  # raised in the main thread by wait()
            self._failure = error
            return
        self._own_steps.add(job.step)
        self._committed.append(job.step)
        if self._world.is_main:
            self._clean()

    def _abandon_after(self, step: int) -> None:
        try:
            for later in (later for later in self.steps() if later > step):
                set_aside(self._folder.committed(later), f"abandoned-{self._world.attempt}")
            write_durably(self._folder.latest, f"{self._folder.committed(step).name}\n".encode())
        except OSError as error:
            raise explain(error, f"rolling back to step {step}", self._folder.root) from None

    def _clean(self) -> None:
        """Applies retention after a commit; a failure to remove something is only logged."""
        try:
            retention.clean(
                self._folder, self._world.attempt, self._config.keep_last, self._config.keep_every
            )
        except (OSError, CheckpointError) as error:
            logger.warning("Old checkpoints in %s were not removed: %s.", self._folder.root, error)


def _plain(meta: dict[str, Any], step: int) -> dict[str, Any]:
    """Returns `meta` as it will be read back from JSON."""
    try:
        content: dict[str, Any] = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"step {step} is not saved: its meta is not JSON-ready ({error})") from None
    return content
