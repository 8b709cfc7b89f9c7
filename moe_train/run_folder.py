"""Manages the folder of one run: its lock, its recipe, and the number of the next attempt.

A launcher holds the lock for as long as it lives, so two runs never share a folder. A resume keeps the model and the
data of the run; everything else may change.
"""

import fcntl
import json
import os
import secrets
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from moe_cluster import records
from moe_cluster.atomic import replace_text
from moe_cluster.contract import attempt_dir
from moe_train.config.changes import comparable, require_same
from moe_train.config.load import load_recipe, to_yaml
from moe_train.config.schema import Recipe
from moe_train.errors import MoETrainError, RunError
from moe_train.made import Made

RECIPE_FILE = "recipe.yaml"
FINISHED_FILE = "finished.json"
LOCK_FILE = "lock"
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.1
OWNER_FILE = "lock-owner"


class RunFolder:
    """Holds a run folder for this process, as a context manager, for as long as a launch lasts."""

    def __init__(self, run_dir: Path, job: str = "") -> None:
        """`job` names the job of this launcher, if a cluster may restart it (`JOB_VARIABLE`)."""
        self.path, self.job = run_dir, job
        self.is_of_same_job = False
        """Whether the folder's last launcher belonged to the same job, which means the cluster restarted it."""
        self._name = secrets.token_hex(8)
        self._lock: int | None = None
        self._made = Made()
        self._aside: tuple[Path, Path] | None = None

    def __enter__(self) -> "RunFolder":
        """Create the folder and lock it. Raises RunError if it cannot be written or another run holds it.

        A launcher of the same job may take over: the cluster lost its node and restarted the job. Workers of it that
        still live belong to an older attempt, which can commit no more checkpoints (checkpoint/lineage.py).
        """
        try:
            self._open_lock()
            assert self._lock is not None
            self.is_of_same_job = bool(self.job) and self._owner()[0] == self.job
            self._take_lock(self._lock)
            if not self._is_lock_of_folder():  # its holder was refused, and has removed the folder
                self._release()
                return self.__enter__()
            self._claim()
        except BlockingIOError:
            if self.is_of_same_job:
                self._claim()
                self._lock_when_free()
                return self
            self._release()
            raise RunError(
                f"run_dir={self.path}: another moe-train is running in it; wait for it to end, stop it, "
                "or choose another --run-dir"
            ) from None
        except OSError as error:
            raise RunError.unwritable(self.path, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _open_lock(self) -> None:
        """Open the lock file; create it and its folder if they are missing."""
        for name in (LOCK_FILE, OWNER_FILE, RECIPE_FILE):
            self._made.expect(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)

    def _is_lock_of_folder(self) -> bool:
        assert self._lock is not None
        path = self.path / LOCK_FILE
        return path.exists() and os.path.samestat(path.stat(), os.fstat(self._lock))

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _take_lock(descriptor: int) -> None:
        """Take the lock. Raises BlockingIOError if another launcher holds it; `is_held`, which holds it for a moment,
        is waited for."""
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if tries_left == 0:
                    raise
            time.sleep(LOCK_PAUSE_S)

    def is_held(self) -> bool:
        """Returns whether another launcher holds the folder now, as far as this host can see."""
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
        """Returns whether a later launcher of the same job has taken over: the cluster has given this one up."""
        return self._owner()[1] not in ("", self._name)

    def _owner(self) -> tuple[str, str]:
        """Returns job and name of the last launcher; both are empty if there was none."""
        path = self.path / OWNER_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        job, name, *_ = [*lines, "", ""]
        return job, name

    def _claim(self) -> None:
        replace_text(self.path / OWNER_FILE, f"{self.job}\n{self._name}\n")

    def _lock_when_free(self) -> None:
        """Take the lock, in the background, when the launcher that was given up ends."""
        assert self._lock is not None
        copy = os.dup(self._lock)  # both belong to one open file, and so share its lock until both are closed

        def wait() -> None:
            fcntl.flock(copy, fcntl.LOCK_EX)
            os.close(copy)

        threading.Thread(target=wait, daemon=True).start()

    @property
    def holds_run(self) -> bool:
        """Returns whether a run was started here before."""
        return (self.path / RECIPE_FILE).exists()

    def move_aside(self) -> Path:
        """Rename the folder and replace it by an empty one; returns the new name of the old folder.

        A link stays: its target is renamed and replaced. The records of the job stay in the new folder, where its
        cluster and the commands about jobs look for them.
        """
        place, number = self.path.resolve(), 1
        while (old := place.with_name(f"{place.name}.old-{number}")).exists():
            number += 1
        try:
            place.rename(old)
            self._aside = old, place
            self._release()
            place.mkdir()
            self.__enter__()
            for name in (records.FILE_NAME, records.JOBS_DIR) if self.job else ():
                if (old / name).exists():
                    (old / name).rename(self.path / name)
        except OSError as error:
            raise RunError.unwritable(self.path, error) from None
        return old

    def take_back(self, attempt: int | None, *, has_begun: bool) -> None:
        """Undo a launch that was refused before its attempt began: remove what it created, restore what it moved.

        `attempt`: the refused one; None if none was made. `has_begun`: an earlier attempt began, so only the folder of
        `attempt` is removed.
        """
        if attempt is not None:
            shutil.rmtree(attempt_dir(self.path, attempt), ignore_errors=True)
        if has_begun:
            return
        self._made.take_back()
        if self._aside is not None:
            old, place = self._aside
            with suppress(OSError):  # else both folders keep the names that were printed
                place.rmdir()
                old.rename(place)

    def finished_step(self) -> int | None:
        """Returns the last step of a finished run; None if it is not finished. Raises RunError if that is unclear."""
        try:
            return int(json.loads((self.path / FINISHED_FILE).read_text())["step"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"run_dir={self.path}: {FINISHED_FILE} cannot be read ({error}); remove that file to resume from the "
                "newest checkpoint"
            ) from None

    def recipe(self) -> Recipe:
        """Read the recipe that the run was last trained with. Raises RunError if it cannot be read."""
        try:
            return load_recipe(self.path / RECIPE_FILE)
        except MoETrainError as error:
            raise RunError(
                f"run_dir={self.path}: its recipe cannot be read ({error}); use --resume never"
            ) from None

    def require_same_run(self, recipe: Recipe) -> None:
        """Raise UsageError if `recipe` cannot resume the folder's run."""
        require_same(comparable(self.recipe()), comparable(recipe), str(self.path))

    def new_attempt(self, recipe: Recipe, after: int = 0) -> int:
        """Make the folder of the next attempt, with its resolved recipe; returns its number, which is above `after`.

        The recipe of an earlier attempt stays the run's own until the trainer accepts the new one.
        """
        try:
            folders = attempt_dir(self.path, 0).parent
            self._made.expect(folders)
            folders.mkdir(exist_ok=True)
            number = _make_next(folders, after)
            text = to_yaml(recipe)
            replace_text(attempt_recipe(self.path, number), text, durable=True)
            if not self.holds_run:
                replace_text(self.path / RECIPE_FILE, text, durable=True)
        except OSError as error:
            raise RunError.unwritable(self.path, error) from None
        return number


def _make_next(folders: Path, after: int) -> int:
    """Make the folder with the next number, which no concurrent caller gets too."""
    while True:
        taken = (int(entry.name) for entry in folders.iterdir() if entry.name.isdigit())
        number = 1 + max([after, *taken])
        with suppress(FileExistsError):
            (folders / str(number)).mkdir()
            return number


def attempt_recipe(run_dir: Path, attempt: int) -> Path:
    """Returns the path of an attempt's resolved recipe."""
    return attempt_dir(run_dir, attempt) / RECIPE_FILE


def accept_recipe(run_dir: Path, recipe: Recipe) -> None:
    """Make `recipe` the run's own and the run unfinished, as its attempt begins. Raises OSError."""
    replace_text(run_dir / RECIPE_FILE, to_yaml(recipe), durable=True)
    (run_dir / FINISHED_FILE).unlink(missing_ok=True)


def mark_finished(run_dir: Path, step: int) -> None:
    """Record that the run in `run_dir` finished at `step`; a resume with more steps continues from there."""
    replace_text(run_dir / FINISHED_FILE, json.dumps({"step": step, "exit_code": 0}) + "\n", durable=True)
