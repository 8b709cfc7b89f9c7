"""The loop: next batch, step, row, validation, checkpoint. Everything a run does between its first and last step.

Rows, validation and checkpoints come at the same steps on every layout. After step K its row is written first, then
its validation, then its checkpoint: so a resume from K finds all that belongs to K already on disk.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from moe_cluster.contract import DONE, PREEMPTED
from moe_train.callbacks.group import CallbackGroup
from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.config.changes import comparable
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.data.loader import Loader
from moe_train.data.pair_loader import PairLoader
from moe_train.decoding.translations import TranslationTest
from moe_train.decoding.translator import Translator
from moe_train.errors import TrainingError
from moe_train.monitor.window import LoadWindow
from moe_train.parallel.memory_use import memory_bytes
from moe_train.parallel.plan import Mesh
from moe_train.results import StepResult
from moe_train.stability import Setback, Stability
from moe_train.step.training_step import TrainingStep
from moe_train.worker.progress import CHECKPOINT, TRANSLATING, VALIDATING

AFTER_ERROR_S = 10.0
"""How long a worker that ends with an error waits for a save in progress: without the others there may be no end."""


class Watch(Protocol):
    """What the loop tells the process it runs in, and asks of it."""

    @property
    def stop_requested(self) -> bool:
        """This process was asked to stop."""
        ...

    def beat(self, step: int) -> None:
        """`step` was made."""
        ...

    def beat_part(self) -> None:
        """A part of the phase is done, which took no longer than a step."""
        ...

    def during(self, phase: str) -> AbstractContextManager[None]:
        """A block that may rightly take longer than a step: a phase of `worker/progress.py`."""
        ...


@dataclass
class Trainer:
    """One attempt at a run, on one rank. All ranks call `fit` together."""

    recipe: Recipe
    mesh: Mesh
    training_step: TrainingStep
    loader: Loader | PairLoader
    validation: list[Batch]
    checkpointer: Checkpointer
    callbacks: CallbackGroup
    window: LoadWindow
    watch: Watch
    fingerprint: str
    """Of the data, kept in every checkpoint."""
    stability: Stability
    translation: TranslationTest | None = None
    """What is translated and scored at each validation."""
    step: int = 0
    """Updates made so far."""

    def __post_init__(self) -> None:
        self._seconds = 0.0  # spent on steps since the last row
        self._tokens = 0  # seen in them
        self._saved_step = self.step

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Go on from a loaded checkpoint: its step, its open logging window, its callbacks' states."""
        self.step = self._saved_step = int(meta["step"])
        self.window.load_state(meta["window"], self.mesh.data)
        self.stability.load_state_dict(meta.get("stability", {}))
        self.callbacks.load_state_dict(meta["callbacks"])

    def fit(self) -> int:
        """Train to the last step, or until a rank is asked to stop; returns an exit code of the contract."""
        if self.step == 0:
            self._validate()
        stopped = False
        try:
            while self.step < self.recipe.steps and not stopped:
                stopped = self._advance() and self.step < self.recipe.steps
            if self._saved_step != self.step:
                self._save()
        except BaseException:
            # What was captured before is good, and worth finishing, unless the ranks that it waits for are gone.
            with self.watch.during(CHECKPOINT):
                self.checkpointer.wait(AFTER_ERROR_S)
            raise
        with self.watch.during(CHECKPOINT):
            self.checkpointer.wait()
        self._tell_commits()
        self._tell("stopped" if stopped else "finished")
        return PREEMPTED if stopped else DONE

    def _advance(self) -> bool:
        """One step and what is due after it; returns whether all ranks must stop now."""
        result = self._step()
        self.step = result.step
        self.window.add(result.stats, self.step)
        self.watch.beat(self.step)
        self.callbacks.on_step(self.step)
        last = self.step == self.recipe.steps
        setback = self.stability.judge(result)
        if result.is_skipped:
            self._tell("skipped", grad_norm=result.grad_norm, skipped_updates=self.stability.counts.skipped)
        if last or self.step % self.recipe.log_every == 0:
            self._write_row(result)
        if setback is not None and self._went_back(setback):
            return result.stop
        if last or _due(self.step, self.recipe.validate_every):
            self._validate()
        if last or result.stop or _due(self.step, self.recipe.checkpoint.every):
            self._save()
        self._tell_commits()
        return result.stop

    def _step(self) -> StepResult:
        began = time.perf_counter()
        data, device = self.mesh.data, self.mesh.world.device
        place = self.step + self.stability.counts.passed_over
        batches = self.loader.batch(place, data.rank, data.size, self.recipe.data.micro_batch)
        try:
            result = self.training_step.update(
                [batch.to(device) for batch in batches], self.step, self.watch.stop_requested
            )
        except TrainingError as error:
            self._tell("not_finite", message=str(error))
            raise
        self._seconds += time.perf_counter() - began
        self._tokens += result.tokens
        return result

    def _write_row(self, result: StepResult) -> None:
        """Reduce the window and write a training row."""
        summary = self.window.reduce(self.mesh.data, {"loss": result.loss, **result.losses})
        means = dict(summary.scalars)
        row = {
            **self._where(),
            "loss": means.pop("loss"),
            "losses": means,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens_seen": self.step * result.tokens,
            "tokens_per_second": self._tokens / self._seconds,
            "memory_bytes": memory_bytes(self.mesh.world.device),
            "moe": summary.as_row(),
        }
        self._seconds, self._tokens = 0.0, 0
        self.callbacks.on_row(row)

    def _validate(self) -> None:
        with self.watch.during(VALIDATING):
            loss = self.training_step.evaluate(self._told(self.validation), self.step)
        scores: dict[str, float] = {}
        if self.translation:
            translator = Translator(
                self.training_step.forward,
                self.mesh.world,
                self.recipe.decoding,
                self.recipe.data.sequence_length,
            )
            with self.watch.during(TRANSLATING):
                scores = self.translation.scores(translator, self.step)
        self.callbacks.on_row({**self._where(), "validation_loss": loss, **scores})

    def _told(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each of which is a part of the phase: done when the next one is asked for."""
        for batch in batches:
            yield batch
            self.watch.beat_part()

    def _save(self) -> None:
        meta = {
            "step": self.step,
            "recipe": comparable(self.recipe),
            "data_fingerprint": self.fingerprint,
            "window": self.window.state(self.mesh.data),
            "callbacks": self.callbacks.state_dict(),
            "stability": self.stability.state_dict(),
        }
        with self.watch.during(CHECKPOINT):
            self.checkpointer.save(self.step, self.training_step.engine.state(), meta)
        self._saved_step = self.step

    def _tell_commits(self) -> None:
        for step in self.checkpointer.poll():
            self.callbacks.on_row({"event": "checkpoint", "step": step, "attempt": self.mesh.world.attempt})

    def _went_back(self, setback: Setback) -> bool:
        """Go on from an earlier checkpoint with the data that comes next; False if there is none to go back to.

        The run is then as if the batches since that checkpoint had never been there. Raises TrainingError if it cannot
        go on.
        """
        config, counts, left = self.recipe.stability, self.stability.counts, self.step
        with self.watch.during(CHECKPOINT):
            self.checkpointer.wait()
        self._tell_commits()
        if not config.rollback:
            self._give_up(setback, "stability.rollback=false")
        if counts.rollbacks >= config.rollback_limit:
            self._give_up(setback, f"stability.rollback_limit={config.rollback_limit} is reached")
        with self.watch.during(CHECKPOINT):
            meta = self.checkpointer.roll_back(
                self.stability.newest_healthy(setback), self.training_step.engine.state()
            )
        if meta is None:
            if setback.must_go_back:
                self._give_up(setback, "there is no checkpoint from before")
            self._tell("spike", reason=setback.reason)
            return False
        self.step = self._saved_step = int(meta["step"])
        self.window.load_state(meta["window"], self.mesh.data)
        self.stability.go_back(left - self.step, meta.get("stability", {}))
        self._seconds, self._tokens = 0.0, 0
        passed_over = self.stability.counts.passed_over
        self._tell("rollback", from_step=left, reason=setback.reason, passed_over_batches=passed_over)
        return True

    def _give_up(self, setback: Setback, why: str) -> NoReturn:
        message = (
            f"step {self.step}: {setback.reason}, and the run does not roll back ({why}); lower "
            f"optim.lr={self.recipe.optim.lr}, or go on from an earlier checkpoint with --resume STEP"
        )
        self._tell("unstable", message=message)
        raise TrainingError(message)

    def _tell(self, event: str, **details: Any) -> None:
        self.callbacks.on_row({"event": event, **self._where(), **details})

    def _where(self) -> dict[str, int]:
        return {"step": self.step, "attempt": self.mesh.world.attempt}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
