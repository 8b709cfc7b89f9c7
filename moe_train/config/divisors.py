"""Suggests divisors where a degree or a size has to divide a number."""

SHOWN_DIVISORS = 12
LARGEST_DIVISOR_TRIED = 1_000_000


def choose_divisor(number: int) -> str:
    """Returns "choose one of" the divisors of `number`, ascending; of many, the smallest; "use 1" for 1."""
    candidates = range(1, min(number, LARGEST_DIVISOR_TRIED) + 1)
    divisors = [str(candidate) for candidate in candidates if number % candidate == 0]
    if len(divisors) == 1:
        return f"use {divisors[0]}"
    more = " or a larger one" if len(divisors) > SHOWN_DIVISORS else ""
    return f"choose one of {', '.join(divisors[:SHOWN_DIVISORS])}{more}"
