"""Requires that all workers have the same recipe and the same versions of what computes, before they join a group.

Workers that differ would train a mixture, or hang in the first collective whose shapes disagree. Launchers of this
package hand one recipe to all workers, but a worker reads its own copy, and runs what its own node has installed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moe_cluster.node.bad_nodes import own_name
from moe_cluster.node.condition import versions
from moe_cluster.node.reports import exchange, leave
from moe_train.config.changes import leaves, shown
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError
from moe_train.parallel.world import Meeting

SHOWN = 8
"""The number of differences, and of ranks with a value, that a message names."""
ABSENT = "absent"


def require_alike(recipe: Recipe, workers: Meeting) -> None:
    """Raises UsageError, on every rank, with each key or library that differs, its values, and the ranks with each.

    Raises ClusterError if a rank is missing. Only digests travel while all are alike.
    """
    store = workers.store
    if store is None:
        return

    def gathered(name: str, own: Mapping[str, Any]) -> list[dict[str, Any]]:
        return exchange(store, name, own, workers.size, workers.rank, recipe.job.timeout_s)

    own = {"recipe": dict(leaves(asdict(recipe))), "versions": versions(recipe.engine.packages)}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    if len({report["digest"] for report in gathered("digest", {"digest": digest})}) == 1:
        return
    reports = gathered("facts", {"host": own_name(), **own})
    leave(store, workers.size, workers.rank)
    problems = [
        *_differences(reports, "recipe", "start all workers with the same recipe"),
        *_differences(reports, "versions", "install the same version on all nodes, e.g. in a shared folder"),
    ]
    more = [f"and {len(problems) - SHOWN} more differences"] if len(problems) > SHOWN else []
    raise UsageError("\n".join([*problems[:SHOWN], *more]))


def _differences(reports: Sequence[Mapping[str, Any]], part: str, way_out: str) -> Iterator[str]:
    """Yields a message for each entry of this part that is not the same on all ranks."""
    for key in sorted({key for report in reports for key in report[part]}):
        ranks: dict[str, list[int]] = {}
        for rank, report in enumerate(reports):
            value = shown(report[part][key]) if key in report[part] else ABSENT
            ranks.setdefault(value, []).append(rank)
        if len(ranks) > 1:
            (usual, _), *others = sorted(ranks.items(), key=lambda entry: -len(entry[1]))
            differing = "; ".join(f"{value} on {_named(of_value, reports)}" for value, of_value in others)
            yield f"{key}={usual}: must be the same on all workers, but is {differing}; {way_out}"


def _named(ranks: Sequence[int], reports: Sequence[Mapping[str, Any]]) -> str:
    """Returns ranks with their hosts: "rank 1 on node2"."""
    named = [f"rank {rank} on {reports[rank]['host']}" for rank in ranks[:SHOWN]]
    return ", ".join(named) + (f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")
