"""Defines the errors that a user can meet.

Each message has the key, the value, the rule and the way out; the command line prints it without a traceback and
exits with the error's code (`moe_cluster.contract` lists them).
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path


def dangling_link(path: Path) -> str:
    """Describes the first dangling link among `path` and its parents; empty if there is none."""
    # os.path instead of Path: it returns False where a name is too long or a folder is not readable.
    way = (*reversed(path.parents), path)
    link = next((link for link in way if os.path.islink(link) and not os.path.exists(link)), None)
    return f"{link} is a link to {os.readlink(link)}, which is not there" if link else ""


class MoETrainError(Exception):
    """Is the base of all errors that moe-train explains in a message."""

    exit_code = 1


class UsageError(MoETrainError):
    """Reports a command line that is invalid, or points to something that is."""

    exit_code = 2


class RecipeError(UsageError):
    """Reports a recipe that is missing, unreadable or invalid."""


class LayoutError(UsageError):
    """Reports degrees of parallelism that do not fit each other, the model, or the number of workers."""


class DataError(MoETrainError):
    """Reports a corpus, a tokenizer or a token file that cannot be used."""

    exit_code = 2


class CheckpointError(MoETrainError):
    """Reports a checkpoint that cannot be written, verified or loaded."""


class RunError(MoETrainError):
    """Reports a run folder that cannot be used, or a run that failed."""

    @classmethod
    def unwritable(cls, run_dir: Path, error: OSError, argument: str = "--run-dir") -> "RunError":
        """Returns the error for an OSError on writing a file of `run_dir`, which the user named as `argument`."""
        file = error.filename2 or error.filename  # of a copy, the file that is written comes second
        if file and (link := dangling_link(Path(file))):
            return cls.unreachable(run_dir, link, argument)
        return cls(
            f"{_key(argument)}={run_dir}: cannot be written ({error.strerror}: {file}); "
            f"correct its permissions, free space, or choose another {argument}"
        )

    @classmethod
    def unreachable(cls, run_dir: Path, link: str, argument: str = "--run-dir") -> "RunError":
        """Returns the error for a run folder behind a `dangling_link`: its storage was purged, or is not mounted."""
        return cls(
            f"{_key(argument)}={run_dir}: {link}; create that folder, correct or remove the link, or choose another "
            f"{argument}"
        )

    @classmethod
    def not_a_folder(cls, run_dir: Path, file: Path, argument: str = "--run-dir") -> "RunError":
        """Returns the error for a run folder where `file`, itself or one of its parents, is no folder."""
        subject = "is" if file == run_dir else f"{file} is"
        return cls(f"{_key(argument)}={run_dir}: {subject} a file, not a folder; choose another {argument}")

    @classmethod
    def unreadable(cls, path: Path, error: OSError) -> "RunError":
        """Returns the error for an OSError on reading `path` or something in it."""
        return cls(
            f"{error.filename or path}: cannot be read ({error.strerror}); fix its permissions, or check that its "
            "disk is mounted"
        )


class TrainingError(MoETrainError):
    """Reports that training cannot continue: a loss or gradient is not finite, or the attempt is superseded."""


def _key(argument: str) -> str:
    """Returns the name under which messages give the value of `argument`: run_dir for --run-dir."""
    return argument.lstrip("-").replace("-", "_")


def closest(word: str, choices: Sequence[str]) -> str:
    """Returns `; did you mean CHOICE?` for the choice that is most like `word`, or nothing if none is."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def in_one_line(error: BaseException, most: int = 300) -> str:
    """Returns the type and message of another package's error in one line of at most `most` characters."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    line = f"{name}: {text}" if text else name
    return line if len(line) <= most else f"{line[: most - 3]}..."
