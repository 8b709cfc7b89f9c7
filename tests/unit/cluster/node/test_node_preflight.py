"""Ranks as threads of this process, each at a loopback address of its own, that try to reach each other."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import torch.distributed as dist

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.node import preflight as module
from moe_cluster.node.bad_nodes import BadNodes, left_out, own_name
from moe_cluster.node.condition import report
from moe_cluster.node.links import Listener, answer_at, mib_per_s
from moe_cluster.node.preflight import Card, listening_address, peers, preflight


@dataclass
class Told:
    """What the ranks of a preflight were told."""

    said: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    kinds: set[type[ClusterError]] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    """Nodes that the next attempt is to leave out."""


def fly(
    folder: Path,
    size: int,
    addresses: list[str] | None = None,
    absent: tuple[int, ...] = (),
    timeout_s: float = 30,
) -> Told:
    """A preflight of so many ranks."""
    store, told = dist.HashStore(), Told()
    (folder / "attempts/3").mkdir(parents=True, exist_ok=True)

    def rank_of(rank: int) -> None:
        address = addresses[rank] if addresses else f"127.0.0.{rank + 1}"
        try:
            preflight(store, rank, size, 0, folder, 3, timeout_s, told.said.append, address)
        except ClusterError as error:
            told.errors[rank] = str(error)
            told.kinds.add(type(error))

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(rank_of, [rank for rank in range(size) if rank not in absent]))
    told.bad = dict(left_out(folder))
    return told


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread is on a host of its own."""
    names: dict[int, str] = {}
    lock = threading.Lock()

    def name() -> str:
        with lock:
            return names.setdefault(threading.get_ident(), f"node{len(names) + 1}")

    monkeypatch.setattr(module.socket, "gethostname", name)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.mark.usefixtures("hosts")
def test_ranks_that_reach_each_other_are_told_how_fast(tmp_path: Path) -> None:
    told = fly(tmp_path, 3)
    assert told.errors == {}
    # Beside it stands what a busy machine's health may give reason to say.
    (sentence,) = [said for said in told.said if said.startswith("preflight: ")]
    assert sentence.startswith("preflight: all 3 ranks reach each other; between 3 nodes, in a ring: ")


def test_one_node_has_no_links_to_speak_of(tmp_path: Path) -> None:
    assert fly(tmp_path, 2) == Told(["preflight: all 2 ranks reach each other, on one node"])


class Stranger:
    """Something that takes connections at an address and does not answer, or answers as another rank."""

    def __init__(self, address: str, port: int, answer: bytes) -> None:
        self._socket = socket.create_server((address, port))
        self._answer = answer
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._held.append(connection)
            if self._answer:
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for one in (self._socket, *self._held):
            one.close()


@pytest.fixture
def misled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Stranger]]:
    """Ranks in this dictionary give the address of a stranger as their own."""
    strangers: dict[int, Stranger] = {}
    honest = Card

    def card(rank: int, local_rank: int, host: str, address: str, port: int) -> Card:
        if rank in strangers:
            address, port = strangers[rank]._socket.getsockname()
        return honest(rank, local_rank, host, address, port)

    monkeypatch.setattr(module, "Card", card)
    yield strangers
    for stranger in strangers.values():
        stranger.close()


def test_a_pair_that_cannot_talk_is_named_on_every_rank(
    tmp_path: Path, misled: dict[int, Stranger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    misled[1] = Stranger("127.0.0.2", 0, b"")
    port = misled[1]._socket.getsockname()[1]
    told = fly(tmp_path, 3)
    here = own_name()
    assert set(told.errors) == {0, 1, 2}
    assert len(set(told.errors.values())) == 1
    assert told.errors[0].splitlines()[:2] == [
        f"rank {rank} on {here} cannot reach rank 1 on {here} at 127.0.0.2:{port} (timed out)"
        for rank in (0, 2)
    ]
    assert "GLOO_SOCKET_IFNAME" in told.errors[0]


def test_an_address_at_which_another_rank_answers_is_no_way(
    tmp_path: Path, misled: dict[int, Stranger]
) -> None:
    misled[1] = Stranger("127.0.0.2", 0, b"rank 7\n")
    assert "cannot reach rank 1 on" in fly(tmp_path, 2).errors[0]
    assert "(rank 7 answers there)" in fly(tmp_path, 2).errors[0]


def test_a_closed_port_is_a_refused_connection() -> None:
    with Listener("127.0.0.1", rank=3) as listener:
        assert answer_at("127.0.0.1", listener.port, timeout_s=5) == 3
        assert mib_per_s("127.0.0.1", listener.port, mib=1, timeout_s=5) > 0
    with pytest.raises(ConnectionRefusedError):
        answer_at("127.0.0.1", listener.port, timeout_s=5)


def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    told = fly(tmp_path, 4, absent=(1, 3), timeout_s=1)
    assert set(told.errors) == {0, 2}
    assert told.errors[2].startswith(
        "rank 1, 3 did not reach the preflight within 1 s, 2 of 4 did; see launcher.log"
    )


@pytest.mark.usefixtures("hosts")
def test_what_is_wrong_with_a_node_is_told_and_versions_that_differ_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_node(run_dir: Path) -> object:
        found = asdict(report(run_dir))
        late = found["host"] == "node2"
        changes = {"clock_ahead_s": -34.0 if late else 0.0, "address": "10.0.0.1"}
        return type(report(run_dir))(
            **{**found, **changes, "gpus": [], "versions": {"torch": "2.12.0" if late else "2"}}
        )

    monkeypatch.setattr(module.condition, "report", of_node)
    told = fly(tmp_path, 2)
    assert [sentence for sentence in told.said if "its clock is 34 s behind" in sentence]
    assert told.errors[0] == told.errors[1]
    assert told.errors[0].startswith("torch differs: ")
    assert told.kinds == {JobError}  # another attempt would find the same
    assert told.bad == {}


@pytest.mark.usefixtures("hosts")
def test_an_unfit_node_is_left_out_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_node(run_dir: Path) -> object:
        found = report(run_dir)
        full = found.host == "node2"
        return replace(found, tmp_free_gib=0.0 if full else 50.0, versions={}, address="10.0.0.1")

    monkeypatch.setattr(module.condition, "report", of_node)
    told = fly(tmp_path, 3)
    assert told.kinds == {ClusterError}
    assert told.errors[1] == f"node2: {told.bad['node2']}"
    assert told.bad["node2"].startswith("the disk of temporary files has 0.00 GiB left")


def test_an_unfit_node_is_written_down_by_the_name_that_slurm_has_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")

    def of_node(run_dir: Path) -> object:
        return replace(report(run_dir), tmp_free_gib=0.0, versions={})

    monkeypatch.setattr(module.condition, "report", of_node)
    told = fly(tmp_path, 2)
    assert told.errors[0].startswith("gpu-17: the disk of temporary files")
    assert BadNodes(told.bad).among(["gpu-16", "gpu-17"]).keys() == {"gpu-17"}


@pytest.mark.usefixtures("hosts")
def test_the_one_node_that_no_other_can_talk_to_is_left_out_by_the_next_attempt(
    tmp_path: Path, misled: dict[int, Stranger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    misled[1] = Stranger("127.0.0.2", 0, b"")
    told = fly(tmp_path, 2)
    assert told.kinds == {ClusterError}
    assert told.bad == {}  # of two nodes, which one is it?
    told = fly(tmp_path, 3)
    (host,) = told.bad
    assert f"cannot reach rank 1 on {host} at 127.0.0.2" in told.errors[0]


def test_of_many_ranks_each_connects_to_those_of_its_own_place_on_other_nodes() -> None:
    cards = [Card(rank, rank % 8, f"node{rank // 8}", "10.0.0.1", 1) for rank in range(80)]
    assert [other.rank for other in peers(cards[11], cards)] == [3, *range(19, 80, 8)]
    assert len(peers(cards[0], cards[:64])) == 63


def test_the_address_is_that_of_the_interface_that_gloo_is_told_to_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth0")
    assert listening_address() == "127.0.0.1"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert listening_address() == socket.getaddrinfo(socket.gethostname(), 0)[0][4][0]
