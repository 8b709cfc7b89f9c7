"""Reads launchers' logs, for the cause of an attempt whose workers left none."""

import re
import socket
from pathlib import Path

from moe_cluster.contract import LAUNCHER_LOG

# The last line of a traceback, or an error message of a shell or a program.
ERROR = re.compile(
    r"(\w+\.)*\w*(Error|Exception|Interrupt)\b.*|\S+: .*(error|fatal|not found|denied)", re.IGNORECASE
)
LONGEST = 300
"""The number of characters of a line that are quoted."""


def why_none_started(attempt: Path) -> str:
    """Returns the likely reason why no worker has started, as the end of a sentence; empty if unknown."""
    logs = [attempt / LAUNCHER_LOG, *sorted(attempt.glob("launcher-*.log"))]
    last_line = next((words for log in logs if (words := last_words(log))), "")
    return "; ".join(filter(None, [_unknown_host(), last_line]))


def last_words(log: Path) -> str:
    """Returns the last line of a log with an error, or else its last line; empty without a log."""
    try:
        lines = [
            line.strip()
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
    except OSError:
        return ""
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or [""])[-1][:LONGEST]


def _unknown_host() -> str:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"this host's name, {name}, does not resolve ({error.strerror}): add it to /etc/hosts"
    return ""
