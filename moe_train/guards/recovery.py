"""Takes the actions of guards: reports, scales a control, rolls back, or ends the run.

What it needs is what all ranks know and what a checkpoint holds, so all ranks act alike, and a run that is killed and
resumed acts as if it had not been.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from moe_train.callbacks.journal import Journal
from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.config.schema import Recipe
from moe_train.controls import Controls, control_names
from moe_train.engines.engine import Engine
from moe_train.errors import TrainingError
from moe_train.guards.actions import RollBack, Scale, Stop, Warn
from moe_train.guards.group import NON_FINITE, SPIKE, guards_of
from moe_train.guards.guard import Update
from moe_train.monitor.window import LoadSummary
from moe_train.results import StepResult
from moe_train.worker.progress import CHECKPOINT


@dataclass(frozen=True)
class Counts:
    """What a run keeps through its rollbacks."""

    skipped: int = 0
    """Updates that were skipped."""
    rollbacks: int = 0
    passed_over: int = 0
    """Batches that the data is ahead of the steps."""


class Recovery:
    """Has every update judged, and acts on the verdicts."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        checkpointer: Checkpointer,
        journal: Journal,
        during: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """`during` marks a phase of `worker/progress.py`, which may take longer than a step."""
        self.recipe, self.engine, self.checkpointer = recipe, engine, checkpointer
        self.journal, self.during = journal, during
        self.guards = guards_of(recipe)
        self.counts = Counts()
        self.controls = Controls()

    def count_skipped(self, result: StepResult) -> None:
        """Counts and reports an update that was skipped."""
        self.counts = replace(self.counts, skipped=self.counts.skipped + 1)
        details = {"grad_norm": result.grad_norm, "skipped_updates": self.counts.skipped}
        self.journal.event("skipped", result.step, **details)

    def respond(self, result: StepResult, loads: LoadSummary | None) -> Mapping[str, Any] | None:
        """Has an update judged and takes the actions in their order. Collective.

        Returns the meta of the checkpoint that the run was rolled back to; None if it was not. Raises TrainingError
        if the run cannot or must not continue.
        """
        update = Update(result.step, result.lr, result.grad_norm, result.mean_loss, result.is_skipped)
        step, meta = result.step, None
        for guard, action in self.guards.judge(update, loads):
            match action:
                case Warn():
                    self.journal.event("warning", step, guard=guard, reason=action.reason)
                case Scale():
                    self._scale(guard, action, step, control_names(result))
                case Stop():
                    self._end(step, f"{action.reason}, at which the guard {guard} stops the run")
                case RollBack() if meta is None:
                    meta = self._roll_back(action, step)
                    step = step if meta is None else int(meta["step"])
        return meta

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be known after a resume, JSON-ready."""
        return {
            "counts": asdict(self.counts),
            "controls": self.controls.state_dict(),
            "guards": self.guards.state_dict(),
        }

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Continues from a loaded checkpoint."""
        if state := _state_of(meta):
            self.counts = Counts(**state["counts"])
            self.controls = Controls.from_state(state["controls"])
            self.guards.load_state_dict(state["guards"])

    def _scale(self, guard: str, action: Scale, step: int, controls: list[str]) -> None:
        if action.control not in controls or not 0 <= action.factor < float("inf"):
            self._end(
                step,
                f"the guard {guard} asks for {action.factor:g} times {action.control}; a factor is a finite number, "
                f"and this run's controls are {', '.join(controls)}",
            )
        self.controls = self.controls.scaled(action.control, action.factor, action.until_step)
        self.journal.event("scale", step, guard=guard, **asdict(action))

    def _roll_back(self, action: RollBack, step: int) -> Mapping[str, Any] | None:
        """Loads an earlier checkpoint; None if there is none and the run can do without.

        The run is then as if the batches since that checkpoint had never been there.
        """
        stability, counts = self.recipe.stability, self.counts
        with self.during(CHECKPOINT):
            self.checkpointer.wait()
        self.journal.commits(self.checkpointer.poll())
        if not stability.rollback:
            self._give_up(action, step, "stability.rollback=false")
        if counts.rollbacks >= stability.rollback_limit:
            self._give_up(action, step, f"stability.rollback_limit={stability.rollback_limit} is reached")
        with self.during(CHECKPOINT):
            meta = self.checkpointer.roll_back(action.newest_step, self.engine.state())
            self.engine.after_load()
        if meta is None:
            if action.otherwise is None:
                self._give_up(action, step, "there is no checkpoint from before")
            self.journal.event(action.otherwise, step, reason=action.reason)
            return None
        self.restore(meta)
        passed_over = counts.passed_over + step - int(meta["step"])
        self.counts = Counts(counts.skipped, counts.rollbacks + 1, passed_over)
        details = {"from_step": step, "reason": action.reason, "passed_over_batches": passed_over}
        self.journal.event("rollback", int(meta["step"]), **details)
        return meta

    def _give_up(self, action: RollBack, step: int, why: str) -> NoReturn:
        self._end(step, f"{action.reason}, and the run does not roll back ({why})")

    def _end(self, step: int, why: str) -> NoReturn:
        message = (
            f"step {step}: {why}; lower optim.lr={self.recipe.optim.lr}, or resume from an earlier checkpoint with "
            "--resume STEP"
        )
        self.journal.event("unstable", step, message=message)
        raise TrainingError(message)


def _state_of(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a checkpoint's `state_dict`. Older ones have that of the guards of `stability`, or none."""
    state = meta.get("stability")
    if not state:
        return meta.get("recovery", {})
    return {
        "counts": {name: state[name] for name in asdict(Counts())},
        "controls": {},
        "guards": {NON_FINITE: {"in_row": state["skips_in_row"]}, SPIKE: state["spikes"]},
    }
