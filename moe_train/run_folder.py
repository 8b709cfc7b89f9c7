"""The folder of one run: who may write to it, what it was started with, and which attempt comes next.

A launcher holds a lock on it for as long as it lives, so two runs never share a folder. A resume keeps the
model and the data of the run; everything else may change.
"""

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from moe_cluster import records
from moe_cluster.atomic import replace_text
from moe_cluster.contract import attempt_dir
from moe_train.config.load import load_recipe, to_dict, to_yaml
from moe_train.config.schema import Recipe, moe_layers
from moe_train.errors import MoETrainError, RunError, UsageError

RECIPE_FILE = "recipe.yaml"
FINISHED_FILE = "finished.json"
LOCK_FILE = "lock"
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.1
OWNER_FILE = "lock-owner"

# A resume that changed one of these would go on with another model, on other data, or in another random
# order.
FIXED = (
    "seed",
    "model",
    "moe",
    "objective",
    "optim.kind",
    "data.corpus",
    "data.tokenizer",
    "data.sequence_length",
    "data.global_batch",
    "data.validation_fraction",
)
# Exceptions below FIXED: where the same text lies now (its fingerprint is checked before a resume), where tokens
# travel, and how many an expert takes at most.
FREE = (
    "data.corpus.path",
    "moe.dispatch",
    "moe.capacity_factor",
    "moe.eval_capacity_factor",
    "moe.capacity_convention",
    "moe.min_capacity",
)


class RunFolder:
    """A run folder held by this process, as a context manager, for as long as a launch lasts."""

    def __init__(self, run_dir: Path, job: str = "") -> None:
        """`job` names the job that this launcher belongs to, if a cluster may start it again (`JOB_VARIABLE`)."""
        self.path, self.job = run_dir, job
        self.is_of_same_job = False
        """Whether the launcher that was here last belonged to the same job: the cluster has started it again."""
        self._name = secrets.token_hex(8)
        self._lock: int | None = None

    def __enter__(self) -> "RunFolder":
        """Create the folder and lock it. Raises RunError if it cannot be written or another run holds it.

        A launcher of the same job is no other run: the cluster gave its node up and started the job again. Whatever
        of it still lives belongs to an older attempt, which commits nothing more (checkpoint/lineage.py).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            self.is_of_same_job = bool(self.job) and self._owner()[0] == self.job
            self._take_lock(self._lock)
            self._claim()
        except BlockingIOError:
            if self.is_of_same_job:
                self._claim()
                self._lock_when_free()
                return self
            self._release()
            raise RunError(
                f"run_dir={self.path}: another moe-train is running in it; wait for its end, stop it, "
                "or choose another --run-dir"
            ) from None
        except OSError as error:
            raise RunError.unwritable(self.path, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _take_lock(descriptor: int) -> None:
        """Raises BlockingIOError if it is held. Whoever asks `is_held` has it for a moment, which is waited for."""
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if tries_left == 0:
                    raise
            time.sleep(LOCK_PAUSE_S)

    def is_held(self) -> bool:
        """Whether another launcher holds the folder at this moment; as far as this host can see."""
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def is_taken_over(self) -> bool:
        """Whether a launcher of the same job has come after this one: its cluster has given this one up."""
        return self._owner()[1] not in ("", self._name)

    def _owner(self) -> tuple[str, str]:
        """The job whose launcher came last, and that launcher's own name; empty if there was none."""
        path = self.path / OWNER_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        job, name, *_ = [*lines, "", ""]
        return job, name

    def _claim(self) -> None:
        replace_text(self.path / OWNER_FILE, f"{self.job}\n{self._name}\n")

    def _lock_when_free(self) -> None:
        """Have the lock as soon as the launcher that was given up has ended, wherever it still lives."""
        assert self._lock is not None
        copy = os.dup(self._lock)  # of one opened file: what one has locked both hold, until both are closed

        def wait() -> None:
            fcntl.flock(copy, fcntl.LOCK_EX)
            os.close(copy)

        threading.Thread(target=wait, daemon=True).start()

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here before."""
        return (self.path / RECIPE_FILE).exists()

    def move_aside(self) -> Path:
        """Give the folder's content another name and go on with an empty folder; returns the other name.

        What a cluster and its commands know a job by stays where they look for it.
        """
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        try:
            self.path.rename(old)
            self._release()
            self.__enter__()
            for name in (records.FILE_NAME, records.JOBS_DIR) if self.job else ():
                if (old / name).exists():
                    (old / name).rename(self.path / name)
        except OSError as error:
            raise RunError.unwritable(self.path, error) from None
        return old

    def finished_step(self) -> int | None:
        """The last step of a run that came to its end; None if it did not. Raises RunError if it says neither."""
        try:
            return int(json.loads((self.path / FINISHED_FILE).read_text())["step"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"run_dir={self.path}: {FINISHED_FILE} cannot be read ({error}); remove that file, and the run goes "
                "on from its newest checkpoint"
            ) from None

    def recipe(self) -> Recipe:
        """What the run was last trained with. Raises RunError if it cannot be read."""
        try:
            return load_recipe(self.path / RECIPE_FILE)
        except MoETrainError as error:
            raise RunError(
                f"run_dir={self.path}: its recipe cannot be read ({error}); use --resume never"
            ) from None

    def require_same_run(self, recipe: Recipe) -> None:
        """Raise UsageError if `recipe` could not go on with what is in the folder."""
        changed = list(_changes(_compared(self.recipe()), _compared(recipe)))
        if changed:
            raise UsageError(
                "\n".join(
                    f"{key}={_shown(new)}: {self.path} has {_shown(old)}, which a resume must keep; "
                    "use that value, --resume never to start afresh, or another --run-dir"
                    for key, old, new in changed
                )
            )

    def new_attempt(self, recipe: Recipe) -> int:
        """Make the folder of the next attempt, the resolved recipe in it; returns its number, from 1.

        The recipe of an earlier attempt stays the run's own until the trainer has accepted the new one.
        """
        try:
            folders = attempt_dir(self.path, 0).parent
            folders.mkdir(exist_ok=True)
            number = _make_next(folders)
            replace_text(attempt_recipe(self.path, number), to_yaml(recipe), durable=True)
            if not self.holds_run:
                replace_text(self.path / RECIPE_FILE, to_yaml(recipe), durable=True)
        except OSError as error:
            raise RunError.unwritable(self.path, error) from None
        return number


def _make_next(folders: Path) -> int:
    """Make the folder with the next number; whoever else makes one at the same moment gets another number."""
    while True:
        taken = (int(entry.name) for entry in folders.iterdir() if entry.name.isdigit())
        number = 1 + max(taken, default=0)
        with suppress(FileExistsError):
            (folders / str(number)).mkdir()
            return number


def attempt_recipe(run_dir: Path, attempt: int) -> Path:
    """The resolved recipe that an attempt was started with."""
    return attempt_dir(run_dir, attempt) / RECIPE_FILE


def accept_recipe(run_dir: Path, recipe: Recipe) -> None:
    """Make `recipe` the run's own, and the run unfinished: an attempt goes on with it. Raises OSError."""
    replace_text(run_dir / RECIPE_FILE, to_yaml(recipe), durable=True)
    (run_dir / FINISHED_FILE).unlink(missing_ok=True)


def mark_finished(run_dir: Path, step: int) -> None:
    """Say that the run in `run_dir` ended at `step`; a resume with more steps goes on from there."""
    replace_text(run_dir / FINISHED_FILE, json.dumps({"step": step, "exit_code": 0}) + "\n", durable=True)


def _compared(recipe: Recipe) -> dict[str, Any]:
    """The recipe as data, where two ways to place the same MoE layers are equal."""
    data = to_dict(recipe)
    data["moe"] |= dict.fromkeys(("every", "first", "dense_first", "stacks")) | {"layers": moe_layers(recipe)}
    return data


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of every fixed key that differs."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    for key in sorted(old.keys() | new.keys()):
        if _below(key, FIXED) and not _below(key, FREE) and old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _below(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
