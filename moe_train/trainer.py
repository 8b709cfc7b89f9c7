"""The loop: next batch, step, row, validation, checkpoint. Everything a run does between its first and last step.

Rows, validation and checkpoints come at the same steps on every layout. After step K its row is written first, then
its validation, then its checkpoint: so a resume from K finds all that belongs to K already on disk. What guards ask for
(`guards/`) is done after the row.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from moe_cluster.contract import DONE, PREEMPTED
from moe_train.callbacks.group import CallbackGroup
from moe_train.callbacks.journal import Journal
from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.config.changes import comparable
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Detail, Recipe
from moe_train.data.batch import Batch
from moe_train.data.loader import Loader
from moe_train.data.pair_loader import PairLoader
from moe_train.decoding.translations import TranslationTest
from moe_train.errors import TrainingError
from moe_train.guards.recovery import Recovery
from moe_train.monitor.alarm import Case
from moe_train.monitor.alarms import Alarms
from moe_train.monitor.explain import event
from moe_train.monitor.losses import LossWindow
from moe_train.monitor.recent import bucket_steps
from moe_train.monitor.rows import Row, as_read
from moe_train.monitor.window import LoadSummary, LoadWindow
from moe_train.parallel.memory_use import memory_bytes
from moe_train.parallel.mesh import Mesh
from moe_train.results import StepResult
from moe_train.step.copies import Copies
from moe_train.step.training_step import TrainingStep
from moe_train.worker.progress import CHECKPOINT, TRANSLATING, VALIDATING

AFTER_ERROR_S = 10.0
"""How long a worker that ends with an error waits for a save in progress: without the others there may be no end."""
EXPERTS_EVERY = 10
"""Steps between measurements of the experts' gradients with `monitor.detail=brief`."""


class Watch(Protocol):
    """What the loop reports to the process it runs in, and asks it."""

    @property
    def stop_requested(self) -> bool:
        """Returns whether this process was asked to stop."""
        ...

    def beat(self, step: int) -> None:
        """Reports that `step` is done."""
        ...

    def beat_part(self) -> None:
        """Reports that a part of the phase is done, which took no longer than a step."""
        ...

    def during(self, phase: str) -> AbstractContextManager[None]:
        """Marks a block that may take longer than a step: a phase of `worker/progress.py`."""
        ...


class Trainer:
    """Makes one attempt at a run, on one rank. All ranks call `fit` together."""

    def __init__(
        self,
        recipe: Recipe,
        mesh: Mesh,
        training_step: TrainingStep,
        loader: Loader | PairLoader,
        validation: list[Batch],
        fingerprint: str,
        checkpointer: Checkpointer,
        callbacks: CallbackGroup,
        watch: Watch,
        translation: TranslationTest | None = None,
    ) -> None:
        """`fingerprint` is that of the data; `translation` is what is translated and scored at each validation."""
        self.recipe, self.mesh, self.training_step = recipe, mesh, training_step
        self.loader, self.validation, self.fingerprint = loader, validation, fingerprint
        self.checkpointer, self.callbacks, self.watch = checkpointer, callbacks, watch
        self.translation = translation
        self.journal = Journal(callbacks, mesh.world.attempt)
        self.recovery = Recovery(recipe, training_step.engine, checkpointer, self.journal, watch.during)
        self.copies = Copies(mesh.world, training_step.engine, recipe.parallel.check_every)
        self.window = self._new_window()
        self.losses, self.alarms = LossWindow(), Alarms(recipe)
        self.step = 0  # updates made so far
        self._saved_step = 0
        self._seconds, self._tokens = 0.0, 0  # of the steps since the last row
        self._began = time.perf_counter()

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Continues from a loaded checkpoint: its step, its open logging window, its guards and callbacks."""
        self._continue_from(meta)
        self.recovery.restore(meta)
        self.callbacks.load_state_dict(meta["callbacks"])

    def fit(self) -> int:
        """Trains to the last step, or until a rank is asked to stop; returns an exit code of the contract."""
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
        self.journal.commits(self.checkpointer.poll())
        self.journal.event("stopped" if stopped else "finished", self.step)
        return PREEMPTED if stopped else DONE

    def _advance(self) -> bool:
        """Makes one step and what is due after it; returns whether all ranks must stop now."""
        result = self._step()
        self.step = result.step
        self.window.add(result.stats, self.step)
        self.losses.add(result.mean_loss)
        self.watch.beat(self.step)
        self.callbacks.on_step(self.step)
        last = self.step == self.recipe.steps
        if result.is_skipped:
            self.recovery.count_skipped(result)
        loads = self._write_row(result) if last or self.step % self.recipe.log_every == 0 else None
        meta = self.recovery.respond(result, loads)
        if meta is not None:
            self._continue_from(meta)
            return result.stop
        saves = last or result.stop or _due(self.step, self.recipe.checkpoint.every)
        if not saves and _due(self.step, self.recipe.parallel.check_every):  # a save compares by itself
            self.copies.require_equal(self.step)
        if last or _due(self.step, self.recipe.validate_every):
            self._validate()
        if saves:
            self._save()
        self.journal.commits(self.checkpointer.poll())
        return result.stop

    def _step(self) -> StepResult:
        began = time.perf_counter()
        data, device = self.mesh.data, self.mesh.world.device
        place = self.step + self.recovery.counts.passed_over
        batches = self.loader.batch(place, data.rank, data.size, self.recipe.data.micro_batch)
        try:
            result = self.training_step.update(
                [batch.to(device) for batch in batches],
                self.step,
                self.watch.stop_requested,
                self.recovery.controls,
                self._detail(),
            )
        except TrainingError as error:
            self.journal.event("not_finite", self.step, message=str(error))
            raise
        self._seconds += time.perf_counter() - began
        self._tokens += result.tokens
        return result

    def _write_row(self, result: StepResult) -> LoadSummary:
        """Reduces the window, writes a training row, and reports the alarms that begin and end with it."""
        summary = self.window.reduce(self.mesh.data, {"loss": result.loss, **result.losses})
        means = dict(summary.scalars)
        of_all_ranks = {
            "loss": means.pop("loss"),
            **self.losses.close(),
            "losses": means,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "skipped_updates": self.recovery.counts.skipped,
            "rollbacks": self.recovery.counts.rollbacks,
            "moe": summary.as_row() | self._other_figures(result),
        }
        self.journal.row(
            self.step,
            time=round(time.time(), 3),
            seconds=round(time.perf_counter() - self._began, 3),
            tokens_seen=self.step * result.tokens,
            tokens_per_second=self._tokens / self._seconds,
            memory_bytes=memory_bytes(self.mesh.world.device),
            **of_all_ranks,
        )
        self._report_alarms({"step": self.step, **as_read(of_all_ranks)})
        self._seconds, self._tokens = 0.0, 0
        return summary

    def _other_figures(self, result: StepResult) -> dict[str, Any]:
        """Returns the figures of a row's experts that no layer counts. Collective."""
        step, every, log_every = self.step, self.recipe.monitor.similarity_every, self.recipe.log_every
        row_before = (step - 1) // log_every * log_every
        is_due = every > 0 and step // every > row_before // every and self.recipe.monitor.detail != "off"
        similarity = self.training_step.similarity() if is_due else {}
        return self.training_step.gauges(step) | dict(result.gradients) | similarity

    def _detail(self) -> Detail:
        """Returns what is measured of the gradients of the next update: nothing if it has no row."""
        step, detail = self.step + 1, self.recipe.monitor.detail
        if step % self.recipe.log_every and step != self.recipe.steps:
            return "off"
        return "full" if detail == "brief" and step % EXPERTS_EVERY == 0 else detail

    def _report_alarms(self, row: Row) -> None:
        """Has the detectors look at a row; all ranks see the same."""
        if self.recipe.monitor.detail == "off":
            return
        begun, over = self.alarms.judge(row)
        for alarm in begun:
            self.journal.event("alarm", self.step, **event(Case(alarm, self.recipe, row, self.alarms.rise)))
        for alarm in over:
            self.journal.event("alarm_over", self.step, **alarm.as_fields())

    def _validate(self) -> None:
        window = self._new_window()
        with self.watch.during(VALIDATING):
            loss = self.training_step.evaluate(self._reported(self.validation), self.step, window)
            loads = window.reduce(self.mesh.data, {})
        scores: dict[str, float] = {}
        if self.translation:
            with self.watch.during(TRANSLATING):
                scores = self.translation.scores(self.step)
        self.journal.row(self.step, validation_loss=loss, **scores, moe=loads.as_row())

    def _new_window(self) -> LoadWindow:
        num_experts, device = spec_of(self.recipe).num_experts, self.mesh.world.device
        return LoadWindow(num_experts, device, bucket_steps(self.recipe), self.mesh.expert.size)

    def _reported(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches, each of which is a part of the phase: done when the next one is taken."""
        for batch in batches:
            yield batch
            self.watch.beat_part()

    def _save(self) -> None:
        meta = {
            "step": self.step,
            "recipe": comparable(self.recipe),
            "data_fingerprint": self.fingerprint,
            "window": self.window.state(self.mesh.data),
            "losses": self.losses.state_dict(),
            "alarms": self.alarms.state_dict(),
            "callbacks": self.callbacks.state_dict(),
            "recovery": self.recovery.state_dict(),
            "copies": self.copies.record(self.step),
        }
        with self.watch.during(CHECKPOINT):
            self.checkpointer.save(self.step, self.training_step.engine.state(), meta)
        self._saved_step = self.step

    def _continue_from(self, meta: Mapping[str, Any]) -> None:
        """Takes the step and the open logging window of a loaded checkpoint."""
        self.step = self._saved_step = int(meta["step"])
        self.window.load_state(meta["window"], self.mesh.data)
        self.losses.load_state_dict(meta.get("losses", {"losses": []}))
        if state := meta.get("alarms"):
            self.alarms.load_state_dict(state)
        else:
            self.alarms.begin_after(self.step)
        self._seconds, self._tokens = 0.0, 0


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
