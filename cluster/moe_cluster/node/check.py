"""Separates problems of nodes that keep a run from starting from warnings, and checks the only node of a run."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from moe_cluster.contract import attempt_dir
from moe_cluster.errors import ClusterError
from moe_cluster.node import condition
from moe_cluster.node.bad_nodes import record
from moe_cluster.node.health_rules import Problem, problems_alone


def check_node(
    run_dir: Path, attempt: int, workers: int, uses_gpus: bool, say: Callable[[str], None]
) -> None:
    """Report the problems of this node; one of its workers calls it.

    Raises ClusterError for problems that keep a run from starting here, after recording them, so that a launcher can
    choose another node for the next attempt.
    """
    fatal = fatal_among(problems_alone(condition.report(run_dir, is_alone=True), workers, uses_gpus), say)
    if fatal:
        write_down(attempt_dir(run_dir, attempt), {problem.host: problem.why for problem in fatal})
        raise ClusterError("\n".join(map(str, fatal)))


def fatal_among(problems: Iterable[Problem], warn: Callable[[str], None]) -> list[Problem]:
    """Returns the problems that keep a run from starting; warns of the others."""
    fatal = []
    for problem in problems:
        if problem.is_fatal:
            fatal.append(problem)
        else:
            warn(str(problem))
    return fatal


def write_down(attempt: Path, bad: Mapping[str, str]) -> None:
    """Record unfit nodes for the launcher of the next attempt, if the folder can be written."""
    with suppress(OSError):  # an unwritable folder may be the problem itself, which the error names
        record(attempt, bad)
