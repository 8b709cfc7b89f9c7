"""Types of arguments that several commands have: numbers, folders, where to go on. Imports nothing slow."""

import argparse
import math
import re
from pathlib import Path
from typing import Any


class Parser(argparse.ArgumentParser):
    """Takes options by their full names only: an abbreviation would change its meaning with the next option."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "allow_abbrev": False})


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def count_or_range(text: str) -> tuple[int, ...]:
    """(N,) of N, or (MIN, MAX) of MIN:MAX, each at least 1."""
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1, nor MIN:MAX of such")
    numbers = tuple(map(int, parts))
    if numbers[0] > numbers[-1]:
        raise argparse.ArgumentTypeError(
            f"{text}: the smaller number goes first; use {numbers[1]}:{numbers[0]}"
        )
    return numbers


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def gibibytes(text: str) -> float:
    """An amount of memory above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no amount of memory; use gibibytes above 0, e.g. 64")
    return number


def minutes(text: str) -> int:
    """Minutes of a time limit: a number of them, with m, h or d behind it, or one of Slurm's own forms, seconds rounded
    up."""
    if match := re.fullmatch(r"(\d+)([mhd]?)", text):
        number = int(match[1]) * {"": 1, "m": 1, "h": 60, "d": 24 * 60}[match[2]]
    else:
        number = _slurm_minutes(text)
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is no time: use minutes (90), hours (12h), days (2d), or Slurm's HH:MM:SS (24:00:00) and "
            "D-HH:MM:SS (1-12:00:00)"
        )
    return number


def _slurm_minutes(text: str) -> int:
    """Of MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; 0 of anything else."""
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
    """A folder that is named."""
    if not text:  # what "$DIR" becomes where DIR is not set; Path would take it for the working directory
        raise argparse.ArgumentTypeError("it is empty; name a folder, or leave the option out for runs/NAME")
    return Path(text)


def resume_from(text: str) -> str:
    """What `--resume` takes."""
    if text not in ("auto", "never") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither auto, never, nor the number of a step")
    return text
