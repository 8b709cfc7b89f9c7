"""Tests the network and the nodes of a run before its workers build anything.

If some pairs of ranks cannot connect, the first collective hangs and names nobody. Here each rank connects to each
other one and reports through the store, which all must reach anyway. Rank 0 evaluates the reports, and every rank gets
the same result; no collective runs. The nodes' condition is reported too (`condition.py`).
"""

import json
import os
import socket
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moe_cluster.contract import attempt_dir
from moe_cluster.errors import ClusterError, JobError
from moe_cluster.linux import address_of
from moe_cluster.node import condition
from moe_cluster.node.bad_nodes import own_name
from moe_cluster.node.check import fatal_among, write_down
from moe_cluster.node.health_rules import problems
from moe_cluster.node.links import Listener, answer_at, mib_per_s
from moe_cluster.node.reports import Store, exchange, first_line, leave

CONNECT_S = 5.0
"""A connection that takes longer counts as failed."""
PROBE_MIB, PROBE_S = 4, 30.0
MOST_PAIRED = 64
"""With more ranks than this each connects to those with its own local rank only: one of each node."""
SLOW = 0.25
"""Links below this share of the median speed are reported."""
SHOWN = 8


@dataclass(frozen=True)
class Card:
    """Holds the address of a rank."""

    rank: int
    local_rank: int
    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class Seen:
    """Holds the results of one rank's tests."""

    unreachable: dict[int, str] = field(default_factory=dict)
    """Rank -> why it could not be reached."""
    mib_per_s: float | None = None
    """Speed of the link to the next node; None: another rank's task, or unreachable."""
    health: str | None = None
    """JSON of the report on this rank's node; None: another rank's task."""


def preflight(
    store: Store,
    rank: int,
    size: int,
    local_rank: int,
    run_dir: Path,
    attempt: int,
    timeout_s: float,
    say: Callable[[str], None],
    address: str | None = None,
) -> None:
    """Test the connections between all ranks; every rank calls it. Rank 0's `say` gets warnings and speeds.

    `timeout_s`: how long to wait for a missing rank. `address`: where this rank listens; None: where gloo will. Raises
    ClusterError, on every rank, with all pairs that cannot connect and all fatal problems of nodes, after recording the
    nodes that another attempt should exclude. Raises JobError if another attempt would fail too: versions differ.
    """
    address = address or listening_address()
    with Listener(address, rank) as listener:
        card = Card(rank, local_rank, own_name(), address, listener.port)
        cards = [Card(**content) for content in exchange(store, "card", asdict(card), size, rank, timeout_s)]
        seen = _look(card, cards, run_dir)
        patience_s = timeout_s + 2 * CONNECT_S + PROBE_S
        everything = [
            Seen(**_as_seen(content))
            for content in exchange(store, "seen", asdict(seen), size, rank, patience_s)
        ]
    unreached = _unreached(cards, everything)
    reports = [condition.read(seen.health) for seen in everything if seen.health is not None]
    fatal = fatal_among(problems(reports), say if rank == 0 else _nobody)
    bad = {problem.host: problem.why for problem in fatal if problem.host}
    if host := _cut_off(cards, everything):
        bad.setdefault(host, "no other node can connect to it, and all others can connect to each other")
    if bad and rank == 0:
        write_down(attempt_dir(run_dir, attempt), bad)
    if faults := [*unreached, *map(str, fatal)]:
        leave(store, size, rank)
        raise (ClusterError if unreached or bad else JobError)("\n".join(faults))
    if rank == 0:
        for sentence in _speeds(cards, everything):
            say(sentence)


def listening_address() -> str:
    """Returns the address at which gloo will listen: that of GLOO_SOCKET_IFNAME, or of this host's own name."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    address = address_of(interface) if interface else None
    if address is not None:
        return address
    try:
        return str(socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return "127.0.0.1"


def peers(card: Card, cards: Sequence[Card]) -> list[Card]:
    """Returns the ranks that a rank connects to."""
    others = [other for other in cards if other.rank != card.rank]
    if len(cards) <= MOST_PAIRED:
        return others
    return [other for other in others if other.local_rank == card.local_rank]


def _look(card: Card, cards: Sequence[Card], run_dir: Path) -> Seen:
    with ThreadPoolExecutor(16) as pool:
        whys = pool.map(_why_unreachable, others := peers(card, cards))
        unreachable = {other.rank: why for other, why in zip(others, whys, strict=True) if why}
    firsts = _firsts(cards)
    if card not in firsts:
        return Seen(unreachable)
    after = firsts[(firsts.index(card) + 1) % len(firsts)]
    speed = None
    if after.rank != card.rank and after.rank not in unreachable:
        try:
            speed = mib_per_s(after.address, after.port, PROBE_MIB, PROBE_S)
        except OSError as error:
            unreachable[after.rank] = f"while sending {PROBE_MIB} MiB: {first_line(error)}"
    return Seen(unreachable, speed, json.dumps(asdict(condition.report(run_dir))))


def _why_unreachable(other: Card) -> str | None:
    try:
        rank = answer_at(other.address, other.port, CONNECT_S)
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return first_line(error)
    return None if rank == other.rank else f"rank {rank} answers there"


def _firsts(cards: Sequence[Card]) -> list[Card]:
    """Returns the first rank of each host."""
    hosts: dict[str, Card] = {}
    for card in cards:
        hosts.setdefault(card.host, card)
    return list(hosts.values())


def _unreached(cards: Sequence[Card], everything: Sequence[Seen]) -> list[str]:
    pairs = [
        f"{card} cannot reach {cards[other]} at {cards[other].address}:{cards[other].port} ({why})"
        for card, seen in zip(cards, everything, strict=True)
        for other, why in seen.unreachable.items()
    ]
    more = [f"and {len(pairs) - SHOWN} more pairs"] if len(pairs) > SHOWN else []
    way_out = (
        "check firewalls and routes between these nodes, or set GLOO_SOCKET_IFNAME to the interface to use"
    )
    return [*pairs[:SHOWN], *more, way_out] if pairs else []


def _cut_off(cards: Sequence[Card], everything: Sequence[Seen]) -> str | None:
    """Returns the one host that is in all of several pairs that cannot connect; None if there is no such host."""
    pairs = {
        frozenset((card.host, cards[other].host))
        for card, seen in zip(cards, everything, strict=True)
        for other in seen.unreachable
    }
    common = frozenset.intersection(*pairs) if len(pairs) > 1 else frozenset()
    return next(iter(common)) if len(common) == 1 else None


def _speeds(cards: Sequence[Card], everything: Sequence[Seen]) -> list[str]:
    firsts = _firsts(cards)
    links = {
        f"{first.host} and {firsts[(index + 1) % len(firsts)].host}": speed
        for index, first in enumerate(firsts)
        if (speed := everything[first.rank].mib_per_s) is not None
    }
    reached = f"preflight: all {len(cards)} ranks reach each other"
    if not links:
        return [f"{reached}, on one node"]
    median, least = statistics.median(links.values()), min(links.values())
    ring = f"between {len(firsts)} nodes, in a ring: {median:.0f} MiB/s (median), {least:.0f} (least)"
    slow = [f"{link} {speed:.0f}" for link, speed in links.items() if speed < SLOW * median]
    return [f"{reached}; {ring}", *([f"slow links, MiB/s: {'; '.join(slow)}"] if slow else [])]


def _as_seen(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert ranks back to numbers: JSON has only text as keys."""
    return {**content, "unreachable": {int(rank): why for rank, why in content["unreachable"].items()}}


def _nobody(sentence: str) -> None:
    """Drop a message: only rank 0 prints."""
