"""The named errors a user can meet.

Each message carries the key, the value, the rule that was broken and the way out; the command line prints it
without a traceback and ends with the error's exit code (`moe_cluster.contract` lists the codes).
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path


def dangling_link(path: Path) -> str:
    """Says which link on the way to `path`, or at it, leads to a place that is not there; empty if none does."""
    # os.path instead of Path: it answers "no" where a name is too long or a folder closed.
    way = (*reversed(path.parents), path)
    link = next((link for link in way if os.path.islink(link) and not os.path.exists(link)), None)
    return f"{link} is a link to {os.readlink(link)}, which is not there" if link else ""


class MoETrainError(Exception):
    """Any failure that moe-train can explain in a sentence."""

    exit_code = 1


class UsageError(MoETrainError):
    """The command line, or what it points to, cannot be used as it is."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that is missing, unreadable, or breaks a rule."""


class LayoutError(UsageError):
    """Degrees of parallelism that fit neither each other, nor the model, nor the number of workers."""


class DataError(MoETrainError):
    """A corpus, a tokenizer or a token file that cannot be used."""

    exit_code = 2


class CheckpointError(MoETrainError):
    """A checkpoint that cannot be written, verified or loaded."""


class RunError(MoETrainError):
    """A run folder that cannot be used, or a run that failed."""

    @classmethod
    def unwritable(cls, run_dir: Path, error: OSError) -> "RunError":
        """What to say of an OSError on a file of `run_dir`: its disk is full, read-only or gone."""
        file = error.filename2 or error.filename  # of a copy, the file that is written comes second
        if file and (link := dangling_link(Path(file))):
            return cls.unreachable(run_dir, link)
        return cls(
            f"run_dir={run_dir}: cannot be written ({error.strerror}: {file}); "
            "correct its permissions, free space, or choose another --run-dir"
        )

    @classmethod
    def unreachable(cls, run_dir: Path, link: str) -> "RunError":
        """What to say of a run folder behind a `dangling_link`: its storage was purged, or is not mounted."""
        return cls(
            f"run_dir={run_dir}: {link}; make that folder again, correct or remove the link, or choose another "
            "--run-dir"
        )

    @classmethod
    def unreadable(cls, path: Path, error: OSError) -> "RunError":
        """What to say of an OSError on reading `path` or something in it."""
        return cls(
            f"{error.filename or path}: cannot be read ({error.strerror}); ask its owner for permission, or see "
            "whether its disk is there"
        )


class TrainingError(MoETrainError):
    """Training cannot go on: a loss or a gradient that is not finite, a superseded attempt."""


def closest(word: str, choices: Sequence[str]) -> str:
    """Returns `; did you mean CHOICE?` for the choice that is most like `word`, or nothing if none is."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def in_one_line(error: BaseException, most: int = 300) -> str:
    """The kind of an error of another package and its message, without line breaks and of at most `most` letters."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    line = f"{name}: {text}" if text else name
    return line if len(line) <= most else f"{line[: most - 3]}..."
