"""Types of arguments that several commands have: a whole number, and a range of them. Imports nothing slow."""

import argparse


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
