"""Which run a folder holds: an id that no other run has, so that checkpoints of two runs are never confused.

RUN/run.json has it, every attempt's start.json and every checkpoint's manifest repeat it. Folders of older versions
have none: their attempts and checkpoints have the empty id, also after a newer version has gone on with them.
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
    """Who wrote a checkpoint."""

    run: str
    attempt: int


@dataclass(frozen=True)
class Origin:
    """The checkpoint that an attempt resumed from, or that a run was forked from."""

    attempt: int
    step: int
    run: str = ""

    @property
    def writer(self) -> Writer:
        """Who wrote it."""
        return Writer(self.run, self.attempt)


@dataclass(frozen=True)
class Identity:
    """The content of run.json."""

    id: str
    place: Place
    last_attempt: int = 0
    """The highest number that an attempt has had; it outlives the folder `attempts`."""
    forked_from: Origin | None = None
    parent: str | None = None
    """The folder of the run that this one was forked or copied from."""
    workers: int = 1
    """How many workers the run had that this one was forked from: its recipe's layout may not allow another number."""

    def write(self, run_dir: Path) -> None:
        """Make it the identity of `run_dir`. Raises OSError."""
        replace_text(run_dir / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n", durable=True)


def new_id() -> str:
    """An id for a run that begins."""
    return secrets.token_hex(8)


def read_identity(run_dir: Path) -> Identity | None:
    """The identity of the run in `run_dir`; None if it has none yet. Raises RunError if it cannot be read."""
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
            f"run_dir={run_dir}: {FILE_NAME}, which says what run this is, cannot be read ({error}); restore that "
            "file, start afresh with --resume never, or choose another --run-dir"
        ) from None


def begin_attempt(run_dir: Path, attempt: int) -> Identity:
    """Record that `attempt` begins, and return the run's identity: a new one for a new run or a copied folder.

    One rank calls it. Raises OSError, or RunError for a file that cannot be read.
    """
    known = read_identity(run_dir)
    if known is None:
        known = Identity(new_id(), Place.of(run_dir))
    elif not known.place.is_of(run_dir):
        is_copy = _is_at(
            known.id, Path(known.place.path)
        )  # else the folder was moved, and is still the same run
        known = replace(known, id=new_id(), parent=known.place.path) if is_copy else known
        known = replace(known, place=Place.of(run_dir))
    known = replace(known, last_attempt=max(known.last_attempt, attempt))
    known.write(run_dir)
    return known


def is_same_run(run_dir: Path, origin: Origin) -> bool:
    """Whether a checkpoint was written by the run in `run_dir`; one without an id was, if this run is no fork."""
    known = read_identity(run_dir)
    return known is None or origin.run == known.id or (not origin.run and known.forked_from is None)


def _is_at(run_id: str, run_dir: Path) -> bool:
    """Whether the run of this id is in `run_dir`, as far as can be seen from here."""
    try:
        other = read_identity(run_dir)
    except RunError:
        return False
    return other is not None and other.id == run_id
