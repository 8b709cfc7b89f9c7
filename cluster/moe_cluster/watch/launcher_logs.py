"""Reads what launchers logged, for the cause of an attempt whose workers never came to tell one."""

import re
import socket
from pathlib import Path

from moe_cluster.contract import LAUNCHER_LOG

# The last line of a traceback, or what a shell or a program says of itself.
ERROR = re.compile(
    r"(\w+\.)*\w*(Error|Exception|Interrupt)\b.*|\S+: .*(error|fatal|not found|denied)", re.IGNORECASE
)
LONGEST = 300
"""Characters of a line that are quoted."""


def why_none_started(attempt: Path) -> str:
    """Returns what this host knows of why no worker has started, as the end of a sentence; empty if nothing."""
    logs = [attempt / LAUNCHER_LOG, *sorted(attempt.glob("launcher-*.log"))]
    logged = next((words for log in logs if (words := last_words(log))), "")
    return "; ".join(filter(None, [_unknown_host(), logged]))


def last_words(log: Path) -> str:
    """Returns the last line of a log that speaks of an error, or else its last line; empty without a log."""
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
