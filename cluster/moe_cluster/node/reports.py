"""Exchanges reports between ranks through the store at which they meet, before they are a process group."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from moe_cluster.errors import ClusterError

LONGEST_GOODBYE_S = 10.0


class Store(Protocol):
    """Declares the used part of torch.distributed's stores."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


def exchange(
    store: Store, name: str, mine: Mapping[str, Any], size: int, rank: int, timeout_s: float
) -> list[dict[str, Any]]:
    """Returns the reports of all ranks, in their order. Rank 0 collects them, so the store gets O(ranks) requests.

    Raises ClusterError if a rank does not report within `timeout_s`.
    """
    store.set(f"{name}/{rank}", json.dumps(mine))
    if rank == 0:
        store.set(f"{name}s", json.dumps(_collected(store, name, size, timeout_s)))
    try:
        # Rank 0 waits for the slowest before it reports who is missing.
        store.wait([f"{name}s"], timedelta(seconds=2 * timeout_s))
    except Exception as error:  # a store has no error class of its own
        raise ClusterError(
            f"rank 0 did not report which ranks started ({first_line(error)}); see its log"
        ) from None
    reports = json.loads(store.get(f"{name}s"))
    if "missing" in reports:
        raise ClusterError(reports["missing"])
    return list(reports["all"])


def leave(store: Store, size: int, rank: int) -> None:
    """Has a rank leave the store after the last exchange. Rank 0, whose process may hold it, is the last to do so."""
    store.set(f"left/{rank}", "")
    if rank == 0:
        with suppress(Exception):  # a store has no error class of its own
            store.wait([f"left/{other}" for other in range(size)], timedelta(seconds=LONGEST_GOODBYE_S))


def _collected(store: Store, name: str, size: int, timeout_s: float) -> dict[str, Any]:
    reports: list[dict[str, Any]] = []
    missing: list[int] = []
    for rank in range(size):
        try:
            store.wait([f"{name}/{rank}"], timedelta(seconds=timeout_s if not missing else 0.1))
            reports.append(json.loads(store.get(f"{name}/{rank}")))
        except Exception:  # a store has no error class of its own
            missing.append(rank)
    if not missing:
        return {"all": reports}
    ranks = ", ".join(map(str, missing))
    return {
        "missing": f"rank {ranks} did not reach the preflight within {timeout_s:.0f} s, {len(reports)} of {size} did; "
        "see launcher.log of the attempt, and check the nodes of the missing ranks"
    }


def first_line(error: BaseException) -> str:
    """Returns an error in one line."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__).splitlines()[0]
