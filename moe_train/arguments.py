"""Parses arguments that several commands share: numbers, folders, where to resume. Imports nothing slow."""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moe_train.errors import UsageError, closest


class Parser(argparse.ArgumentParser):
    """Accepts options by their full names only: a new option could make an abbreviation ambiguous."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "allow_abbrev": False})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and suggest the option or command that a wrong one may have meant."""
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            self.error(
                f"unrecognized arguments: {' '.join(extra)}{closest(_name(extra[0]), _options_of(self))}"
            )
        return options

    def error(self, message: str) -> NoReturn:
        """End with the usage and the message."""
        if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += closest(_name(match[1]), re.split(r"[', ]+", match[2]))
        super().error(message)


def add_overrides(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the positional `key=value ...`; `what` is its help."""
    # Without a default argparse calls it required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=what)


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse options and overrides, in any order. Raises UsageError for an unknown option."""
    # argparse stops at positionals after the first option, so the later overrides are in `extra`.
    options, extra = parser.parse_known_args(arguments)
    if unknown := [word for word in extra if word.startswith("-")]:
        word, command = _name(unknown[0]), getattr(options, "command", None)
        program = f"{parser.prog} {command}" if command else parser.prog
        near = closest(word, _options_of(parser, command))
        raise UsageError(f"{word}: there is no such option{near}; see {program} --help")
    options.overrides += extra
    return options


def _name(word: str) -> str:
    """Returns the option in `--option=value`."""
    return word.partition("=")[0]


def _options_of(parser: argparse.ArgumentParser, command: str | None = None) -> list[str]:
    """Returns the options of a parser and of its commands, or of one of them."""
    options: list[str] = []
    for action in parser._actions:  # argparse has no public list of them
        options += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                options += _options_of(below) if command in (None, name) else []
    return options


def count(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def count_or_range(text: str) -> tuple[int, ...]:
    """Parse N into (N,) and MIN:MAX into (MIN, MAX), each at least 1."""
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1, nor MIN:MAX")
    numbers = tuple(map(int, parts))
    if numbers[0] > numbers[-1]:
        raise argparse.ArgumentTypeError(f"{text}: MIN must be <= MAX; use {numbers[1]}:{numbers[0]}")
    return numbers


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def at_least_one(text: str) -> float:
    """Parse a finite number >= 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return number


def gibibytes(text: str) -> float:
    """Parse an amount of memory > 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not an amount of memory; use gibibytes > 0, e.g. 64")
    return number


def minutes(text: str) -> int:
    """Parse a time limit into minutes: a number with an optional m, h or d, or one of Slurm's forms, rounded up."""
    if match := re.fullmatch(r"(\d+)([mhd]?)", text):
        number = int(match[1]) * {"": 1, "m": 1, "h": 60, "d": 24 * 60}[match[2]]
    else:
        number = _slurm_minutes(text)
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is not a time limit; use minutes (90), hours (12h), days (2d), or Slurm's HH:MM:SS (24:00:00) and "
            "D-HH:MM:SS (1-12:00:00)"
        )
    return number


def _slurm_minutes(text: str) -> int:
    """Parse MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; returns 0 for anything else."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (*parts, *([days] if dash else []))) or len(parts) > 3:
        return 0
    numbers = [int(part) for part in parts]
    if dash:
        numbers = [int(days), *numbers, *[0] * (3 - len(numbers))]
    elif len(numbers) == 1:
        return 0
    numbers = [0] * (4 - len(numbers)) + numbers
    limits = (None, 24 if dash else None, 60 if dash or len(parts) == 3 else None, 60)
    if any(limit and number >= limit for number, limit in zip(numbers, limits, strict=True)):
        return 0
    num_days, hours, mins, seconds = numbers
    return (num_days * 24 + hours) * 60 + mins + (seconds > 0)


def folder(text: str) -> Path:
    """Parse the name of a folder, which must not be empty."""
    if not text:  # "$DIR" with DIR unset; Path would take it for the working directory
        raise argparse.ArgumentTypeError("must not be empty; name a folder, or omit the option for runs/NAME")
    return Path(text)


def resume_from(text: str) -> str:
    """Parse the value of `--resume`."""
    if text not in ("auto", "never") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither auto, never, nor a step number")
    return text
