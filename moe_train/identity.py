"""Gives every run an id, so that the checkpoints of two runs are never confused.

RUN/run.json has the id; every attempt's start.json and every checkpoint's manifest repeat it. Folders of older versions
have none: their attempts and checkpoints keep the empty id, even after a newer version has resumed them.
"""

import json
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from moe_cluster.atomic import replace_text
from moe_cluster.place import Place
from moe_train.errors import RunError

FILE_NAME = "run.json"


class Writer(NamedTuple):
    """Identifies the run and the attempt that wrote a checkpoint."""

    run: str
    attempt: int


@dataclass(frozen=True)
class Origin:
    """Identifies the checkpoint that an attempt resumed from, or that a run was forked from."""

    attempt: int
    step: int
    run: str = ""

    @property
    def writer(self) -> Writer:
        """Returns the run and attempt that wrote it."""
        return Writer(self.run, self.attempt)


@dataclass(frozen=True)
class Identity:
    """Holds the content of run.json."""

    id: str
    place: Place
    last_attempt: int = 0
    """The highest attempt number so far, also when the folder `attempts` is gone."""
    forked_from: Origin | None = None
    parent: str | None = None
    """The folder of the run that this one was forked or copied from."""
    workers: int = 1
    """The number of workers of the run that this one was forked from; the recipe may not allow another."""

    def write(self, run_dir: Path) -> None:
        """Write it to run.json of `run_dir`. Raises OSError."""
        replace_text(run_dir / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n", durable=True)


def new_id() -> str:
    """Returns an id for a new run."""
    return secrets.token_hex(8)


def read_identity(run_dir: Path) -> Identity | None:
    """Read the identity of the run in `run_dir`; None if it has none yet. Raises RunError if it is unreadable."""
    path = run_dir / FILE_NAME
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        fork = data.pop("forked_from")
        return Identity(
            place=Place(**data.pop("place")), forked_from=None if fork is None else Origin(**fork), **data
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"run_dir={run_dir}: {FILE_NAME}, which identifies the run, cannot be read ({error}); restore that file, "
            "start afresh with --resume never, or choose another --run-dir"
        ) from None


def begin_attempt(run_dir: Path, attempt: int) -> Identity:
    """Record that `attempt` begins, and return the run's identity: a new one for a new run or a copied folder.

    One rank calls it. Raises OSError, or RunError for a file that cannot be read.
    """
    identity = read_identity(run_dir)
    if identity is None:
        identity = Identity(new_id(), Place.of(run_dir))
    elif not identity.place.is_of(run_dir):
        original = identity.place.path
        if _is_at(identity.id, Path(original)):  # else the folder was moved, and is still the same run
            identity = replace(identity, id=new_id(), parent=original)
        identity = replace(identity, place=Place.of(run_dir))
    identity = replace(identity, last_attempt=max(identity.last_attempt, attempt))
    identity.write(run_dir)
    return identity


def is_same_run(run_dir: Path, origin: Origin) -> bool:
    """Returns whether the run in `run_dir` wrote a checkpoint; one without an id belongs to any run that is no fork."""
    identity = read_identity(run_dir)
    return identity is None or origin.run == identity.id or (not origin.run and identity.forked_from is None)


def _is_at(run_id: str, run_dir: Path) -> bool:
    """Returns whether `run_dir`, as far as it is readable, has the run with this id."""
    try:
        other = read_identity(run_dir)
    except RunError:
        return False
    return other is not None and other.id == run_id
