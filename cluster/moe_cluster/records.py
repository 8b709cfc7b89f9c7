"""Which jobs a run was given to: one line each in the run's folder, so that any machine that sees it can ask.

Nothing secret is in a record: tokens and keys stay in the environment of whoever submits or asks.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moe_cluster.errors import ClusterError
from moe_cluster.job import JobSpec, Resources

FILE_NAME = "jobs.jsonl"
JOBS_DIR = "jobs"
"""Folder below a run's with what belongs to its jobs: recipes, scripts, output."""


@dataclass(frozen=True)
class JobRecord:
    """One submission."""

    cluster: str
    """Kind of the executor."""
    id: str
    time: float
    """Seconds since 1970."""
    user: str
    host: str
    """Where it was submitted."""
    resources: Resources
    options: Mapping[str, str] = field(default_factory=dict)
    directives: tuple[str, ...] = ()
    max_restarts: int = 0

    def __str__(self) -> str:
        return f"{self.cluster}:{self.id}"


def append(run_dir: Path, record: JobRecord) -> None:
    """Add a line, with one write. Raises OSError."""
    line = json.dumps(asdict(record)) + "\n"
    descriptor = os.open(run_dir / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(run_dir: Path) -> list[JobRecord]:
    """All records, the newest last; empty where nothing was submitted. Raises ClusterError for a damaged line."""
    path = run_dir / FILE_NAME
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


def jobs_dir(spec: JobSpec) -> Path:
    """The folder of what belongs to a run's jobs; made if it is not there. Raises OSError."""
    folder = spec.run_dir / JOBS_DIR
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parsed(path: Path, number: int, line: str) -> JobRecord:
    try:
        entry = json.loads(line)
        resources, directives = Resources(**entry.pop("resources")), tuple(entry.pop("directives"))
        return JobRecord(resources=resources, directives=directives, **entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"{path}: line {number} is not a record of a job ({error}); remove that line, and the others count"
        ) from None
