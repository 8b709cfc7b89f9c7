"""The rule of all verdicts: paired differences, their mean and standard error, and 2 standard errors as the border.

An expectation has one number per seed, d: of two arms their difference at that seed, of one arm its distance from a
bound. With n seeds, m = mean(d), s = the sample standard deviation of d, and e = s / sqrt(n):

    lower     met if m < -2e   contradicted if m > 2e   otherwise there is no difference
    higher    the same of -d
    at_most   met if m + 2e <= within   contradicted if m - 2e > within   otherwise undecided
    close     met if |m| + 2e <= within   contradicted if |m| - 2e > within   otherwise undecided

Fewer than 3 seeds decide nothing, nor do seeds of which one has no number. `no difference` and `undecided` mean that
the budget did not show more: 2e is the smallest difference that it could have shown.

The verdict on a claim is that of its assertions alone: what stands beside them (ablations, mechanisms, premises) is
judged and makes no verdict better or worse.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from reproduction.plan import Relation

LEAST_SEEDS = 3
STANDARD_ERRORS = 2.0


class Outcome(StrEnum):
    """Of one expectation."""

    MET = "met"
    CONTRADICTED = "contradicted"
    NO_DIFFERENCE = "no difference"
    UNDECIDED = "undecided"
    NOT_JUDGED = "not judged"
    NOT_RUN = "not yet run"


@dataclass(frozen=True)
class Judgement:
    """What the seeds say about one expectation."""

    outcome: Outcome
    mean: float = math.nan
    standard_error: float = math.nan
    seeds: int = 0


def judge(relation: Relation, differences: Sequence[float], within: float = 0.0) -> Judgement:
    """Judge one expectation by its differences, one per seed."""
    seeds = len(differences)
    if seeds < LEAST_SEEDS:
        return Judgement(Outcome.NOT_RUN, seeds=seeds)
    if not all(map(math.isfinite, differences)):
        return Judgement(Outcome.UNDECIDED, seeds=seeds)
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(seeds)
    return Judgement(_outcome(relation, mean, STANDARD_ERRORS * error, within), mean, error, seeds)


def _outcome(relation: Relation, mean: float, border: float, within: float) -> Outcome:
    if relation in ("lower", "higher"):
        towards = -mean if relation == "lower" else mean
        if abs(towards) <= border:
            return Outcome.NO_DIFFERENCE
        return Outcome.MET if towards > 0 else Outcome.CONTRADICTED
    distance = abs(mean) if relation == "close" else mean
    if distance + border <= within:
        return Outcome.MET
    return Outcome.CONTRADICTED if distance - border > within else Outcome.UNDECIDED


def summary(outcomes: Sequence[Outcome]) -> str:
    """The verdict on a claim: that of all its assertions together, of which there is at least one."""
    if Outcome.NOT_RUN in outcomes:
        return "not yet run" if set(outcomes) == {Outcome.NOT_RUN} else "not yet run as a whole"
    if all(outcome is Outcome.MET for outcome in outcomes):
        return "holds here"
    if Outcome.MET not in outcomes:
        contradicted = Outcome.CONTRADICTED in outcomes
        return "does not hold here" if contradicted else "no verdict: the budget is too small to see it"
    return "holds in part"
