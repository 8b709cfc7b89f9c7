"""Where a node is found by others of its job, without asking a network."""

import socket

import pytest

from moe_cluster.errors import ClusterError
from moe_cluster.slurm import addresses
from moe_cluster.slurm.addresses import own_address, towards, with_port

NAMES = {
    "debian": ["127.0.1.1"],
    "node1": ["fd00::11", "127.0.1.1", "10.77.0.11"],
    "node2": ["10.77.0.12"],
    "six": ["fd00::12"],
    "local": ["fe80::1"],
}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that stand for these addresses alone, and a way to 10.77.0.12 and fd00::12."""

    def getaddrinfo(name: str, port: int, **options: object) -> list[tuple[object, ...]]:
        found = NAMES.get(name, [name] if name[0].isdigit() else [])
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [(family, 2, 17, "", (address, port)) for family, address in zip(families, found, strict=True)]

    ways = {"10.77.0.12": "10.77.0.11", "fd00::12": "fd00::11", "127.0.0.1": "127.0.0.1"}
    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "towards", lambda address: ways.get(address, ""))


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("10.1.2.3", ["unknown"], "10.1.2.3"),  # what Slurm knows needs no way
        ("node1", ["node2"], "10.77.0.11"),  # neither its loopback nor, as there is another, its IPv6 address
        ("six", ["node2"], "fd00::12"),
        ("debian", ["unknown", "node2"], "10.77.0.11"),
        ("unknown", ["node2"], "10.77.0.11"),
        ("unknown", ["six"], "fd00::11"),
        ("local", ["node2"], "10.77.0.11"),
        ("debian", [], "127.0.1.1"),  # nobody else has to find it
        ("unknown", [], "127.0.0.1"),
    ],
)
def test_a_node_is_where_others_find_it(own: str, others: list[str], expected: str) -> None:
    assert own_address(own, others) == expected


@pytest.mark.parametrize("others", [["unknown"], ["127.0.0.1"], ["10.9.9.9"]])
def test_a_node_that_others_cannot_find_is_told_with_its_address(others: list[str]) -> None:
    with pytest.raises(
        ClusterError, match=r"debian resolves to 127\.0\.1\.1, and there is no route from here to"
    ):
        own_address("debian", others)


def test_the_way_to_this_host_begins_at_it_and_one_that_there_is_not_is_empty() -> None:
    assert towards("127.0.0.1") == "127.0.0.1"
    assert towards("255.255.255.255") == ""  # a broadcast, which a socket may not send unasked


def test_an_address_of_either_kind_is_written_with_its_port() -> None:
    assert with_port("10.0.0.1", 6379) == "10.0.0.1:6379"
    assert with_port("fd00::1", 6379) == "[fd00::1]:6379"
