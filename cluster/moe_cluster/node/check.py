"""What becomes of problems of nodes before work begins on them; and a look at the one node of a run, the part of a
preflight that needs no other node."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from moe_cluster.contract import attempt_dir
from moe_cluster.errors import ClusterError
from moe_cluster.node import health
from moe_cluster.node.bad_nodes import record
from moe_cluster.node.health_rules import Problem, problems_alone


def check_node(
    run_dir: Path, attempt: int, workers: int, uses_gpus: bool, say: Callable[[str], None]
) -> None:
    """Tell what is wrong with this node; one of its workers calls it.

    Raises ClusterError with what keeps a run from starting here, written down first: a launcher that can choose has the
    next attempt elsewhere.
    """
    fatal = fatal_among(problems_alone(health.report(run_dir, is_alone=True), workers, uses_gpus), say)
    if fatal:
        write_down(attempt_dir(run_dir, attempt), {problem.host: problem.why for problem in fatal})
        raise ClusterError("\n".join(map(str, fatal)))


def fatal_among(found: Iterable[Problem], warn: Callable[[str], None]) -> list[Problem]:
    """What keeps a run from starting; the rest is a warning."""
    fatal = []
    for problem in found:
        if problem.is_fatal:
            fatal.append(problem)
        else:
            warn(str(problem))
    return fatal


def write_down(attempt: Path, bad: Mapping[str, str]) -> None:
    """Record unfit nodes for whoever chooses those of the next attempt, if the folder can be written."""
    with suppress(OSError):  # it may be what is wrong; the error says so
        record(attempt, bad)
