"""Tests connections between workers before they are needed: who answers at an address, and how fast a link is.

One worker listens (`Listener`), others connect (`answer_at`, `mib_per_s`). It uses plain sockets: a collective would
report that something timed out, but not what. `preflight.py` decides who connects to whom.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

MIB = 2**20
PATIENCE_S = 30.0
"""Timeout of one connection on the listening side."""
HELLO, PROBE = b"hello", b"probe"


class Listener:
    """Answers connections with this worker's rank, or receives and sends the bytes of a probe; a context manager."""

    def __init__(self, address: str, rank: int) -> None:
        """Listen at `address`, a port of the system's choice. Raises OSError."""
        family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
        self._socket = socket.create_server((address, 0), family=family, backlog=1024)
        self._rank = rank
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> "Listener":
        threading.Thread(target=self._listen, name="preflight", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            connection.settimeout(PATIENCE_S)
            word, number = _line(connection).split()
            if word == HELLO:
                connection.sendall(b"rank %d\n" % self._rank)
            elif word == PROBE:
                _receive(connection, int(number))
                connection.sendall(bytes(int(number)))


def answer_at(address: str, port: int, timeout_s: float) -> int:
    """Returns the rank that answers at an address. Raises OSError if none does in time."""
    with socket.create_connection((address, port), timeout_s) as connection:
        connection.sendall(HELLO + b" 0\n")
        word, rank = _line(connection).split()
        if word != b"rank":
            raise OSError("something else answers there")
        return int(rank)


def mib_per_s(
    address: str, port: int, mib: int, timeout_s: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure MiB per second over the link to a listener: `mib` there, then as many back. Raises OSError."""
    size = mib * MIB
    with socket.create_connection((address, port), timeout_s) as connection:
        began = clock()
        connection.sendall(PROBE + b" %d\n" % size + bytes(size))
        _receive(connection, size)
        return 2 * mib / (clock() - began)


def _line(connection: socket.socket) -> bytes:
    """Read the first line byte by byte: the bytes after it belong to a probe."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise OSError("the connection was closed")
        line += byte
    return line


def _receive(connection: socket.socket, size: int) -> None:
    while size:
        chunk = connection.recv(min(size, MIB))
        if not chunk:
            raise OSError("the connection was closed")
        size -= len(chunk)
