"""Asks the Jobs API of a Ray cluster for the state of a job, by its documented HTTP interface.

Ray's own client takes longer to import than `moe-train status` may take in all. The token is read where Ray reads it.
The errors of requests to a cluster are defined here, for that client (client.py) too.
"""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from moe_cluster.errors import ClusterError

CONNECT_S, ANSWER_S = 5.0, 30.0
TOKEN_FILE = Path("~/.ray/auth_token")
"""The last place where Ray looks for a token."""


def job_details(
    address: str, job_id: str, environment: Mapping[str, str] = os.environ
) -> dict[str, Any] | None:
    """Returns the fields of Ray's JobDetails; None if the cluster at `address` has no such job. Raises ClusterError."""
    try:
        code, text = _get(address, f"/api/jobs/{quote(job_id, safe='')}", authorization(environment))
        if code == HTTPStatus.OK:
            return dict(json.loads(text))
    except (OSError, HTTPException, ValueError, TypeError) as error:
        raise no_answer(address, error) from None
    if code == HTTPStatus.NOT_FOUND:
        return None
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise refused_token(address, text)
    raise ClusterError(
        f"--address {address}: the Ray cluster returned no state of job {job_id} ({code}): {text}"
    )


def _get(address: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """Returns status and text of an answer. The timeout of a connection is shorter than that of an answer."""
    where = urlsplit(address)
    kind = HTTPSConnection if where.scheme == "https" else HTTPConnection
    with closing(kind(where.netloc, timeout=CONNECT_S)) as connection:
        connection.connect()
        connection.sock.settimeout(ANSWER_S)
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace").strip()


def authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the header with the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or TOKEN_FILE, if Ray uses one."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(os.path.expanduser(environment.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE))
        try:
            token = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_MODE=token: {path} cannot be read ({error.strerror}); set RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's own token"
            ) from None
    return {"Authorization": f"Bearer {token}"}


def refused_token(address: str, words: str) -> ClusterError:
    """Returns the error for a token that is not the cluster's."""
    return ClusterError(
        f"--address {address}: the Ray cluster refused the token ({words}); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        "or RAY_AUTH_TOKEN_PATH to the cluster's own"
    )


def no_answer(address: str, why: object) -> ClusterError:
    """Returns the error for an address where no Ray cluster answers."""
    return ClusterError(
        f"--address {address}: there is no answer ({why}); check that this is the address of a Ray "
        "cluster's dashboard, and that this host can reach it"
    )
