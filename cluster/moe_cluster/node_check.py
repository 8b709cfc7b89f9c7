"""A look at the one node of a run before work begins on it: the part of a preflight that needs no other node."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from moe_cluster import health
from moe_cluster.bad_nodes import record
from moe_cluster.contract import attempt_dir
from moe_cluster.errors import ClusterError
from moe_cluster.health_rules import problems_alone


def check_node(
    run_dir: Path, attempt: int, workers: int, uses_gpus: bool, say: Callable[[str], None]
) -> None:
    """Tell what is wrong with this node; one of its workers calls it.

    Raises ClusterError with what keeps a run from starting here, written down first: a launcher that can choose has the
    next attempt elsewhere.
    """
    found = problems_alone(health.report(run_dir, is_alone=True), workers, uses_gpus)
    for problem in found:
        if not problem.is_fatal:
            say(str(problem))
    fatal = [problem for problem in found if problem.is_fatal]
    if fatal:
        bad = {problem.host: problem.text.removeprefix(f"{problem.host}: ") for problem in fatal}
        with suppress(OSError):  # the folder itself may be what is wrong; the error says so
            record(attempt_dir(run_dir, attempt), bad)
        raise ClusterError("\n".join(map(str, fatal)))
