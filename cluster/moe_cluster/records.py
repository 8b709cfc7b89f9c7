"""Records the jobs of a run, one line each in the run's folder, so that any machine that sees it can query them.

A job belongs to the folder that it was made for; a copy of the folder has a copy of the file, and disowns its jobs.
Records hold no secrets: tokens and keys stay in the environment of the command.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moe_cluster.errors import ClusterError
from moe_cluster.job import JobSpec, Resources
from moe_cluster.place import Place

FILE_NAME = "jobs.jsonl"
JOBS_DIR = "jobs"
"""Folder below a run's with what belongs to its jobs: recipes, scripts, output."""


@dataclass(frozen=True)
class JobRecord:
    """Holds one submission."""

    cluster: str
    """Kind of the executor."""
    id: str
    time: float
    """Seconds since 1970."""
    user: str
    host: str
    """The host that submitted it."""
    resources: Resources
    options: Mapping[str, str] = field(default_factory=dict)
    directives: tuple[str, ...] = ()
    """Without those of the site."""
    max_restarts: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    """Like `directives`, these two do not include the site's."""
    place: Place | None = None
    """Place of the folder that the job was made for; None in records of older versions."""

    def __str__(self) -> str:
        return f"{self.cluster}:{self.id}"


def append(run_dir: Path, record: JobRecord) -> None:
    """Add a whole line or nothing. Raises OSError that names the file."""
    line = (json.dumps(asdict(record)) + "\n").encode()
    path = run_dir / FILE_NAME
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while line:  # a nearly full disk takes a part, and fails only at the next write
                line = line[file.write(line) :]
        except OSError as error:
            file.truncate(before)
            error.filename = str(path)
            raise


def read(run_dir: Path) -> list[JobRecord]:
    """Read the records of the folder's own jobs, the newest last. Raises ClusterError for a damaged line."""
    return [record for record in _all(run_dir) if _belongs(record, run_dir)]


def disowned(run_dir: Path) -> list[JobRecord]:
    """Read the records of jobs that belong to the folder of which this one is a copy. Raises ClusterError."""
    return [record for record in _all(run_dir) if not _belongs(record, run_dir)]


def _belongs(record: JobRecord, run_dir: Path) -> bool:
    return record.place is None or record.place.is_of(run_dir)


def _all(run_dir: Path) -> list[JobRecord]:
    path = run_dir / FILE_NAME
    try:
        lines = path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


def jobs_dir(spec: JobSpec) -> Path:
    """Create and return the folder of a run's jobs. Raises ClusterError."""
    return create_folder(spec.run_dir / JOBS_DIR)


def create_folder(folder: Path) -> Path:
    """Create a folder if it is missing, and return it. Raises ClusterError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"{folder}: cannot be created ({error.strerror}); correct its permissions, or choose another folder; "
            "nothing was submitted"
        ) from None
    return folder


def _parsed(path: Path, number: int, line: str) -> JobRecord:
    try:
        entry = json.loads(line)
        resources, directives = Resources(**entry.pop("resources")), tuple(entry.pop("directives"))
        place_fields, setup = entry.pop("place", None), tuple(entry.pop("setup", ()))
        place = Place(**place_fields) if place_fields else None
        return JobRecord(resources=resources, directives=directives, setup=setup, place=place, **entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"{path}: line {number} is not a record of a job ({error}); remove that line to keep the others"
        ) from None
