"""A job's output, followed over connections that break; and the interface that a worker's address belongs to."""

from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from moe_cluster.linux import interface_of
from moe_cluster.ray.client import Client, followed


class Connections:
    """Each call of `tail` is one connection; it begins with the first letter, as Ray's does."""

    def __init__(self, *connections: Sequence[str]) -> None:
        self.left = list(connections)

    def tail(self, job_id: str) -> Iterator[str]:
        return iter(self.left.pop(0))

    def is_over(self) -> bool:
        return len(self.left) == 1


@pytest.mark.parametrize(
    "connections",
    [
        [["one\ntwo\n", "three"]],
        [["one\ntw"], ["one\n", "two\nthree"]],
        [[], ["one\ntwo\nthr"], ["o", "ne\ntwo\nthree"]],
    ],
)
def test_every_line_is_told_once_however_often_the_connection_breaks(connections: list[list[str]]) -> None:
    client = Connections(*connections)
    assert list(followed(cast(Client, client), "small-1", client.is_over)) == ["one", "two", "three"]


def test_the_interface_of_an_address_is_found_and_none_for_a_strangers() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") == ""
