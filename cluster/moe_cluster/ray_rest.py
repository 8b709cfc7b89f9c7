"""One question to the Jobs API of a Ray cluster, asked over HTTP as it is documented: how a job stands.

Ray's own client takes longer to import than `moe-train status` may take in all. The token is found where Ray looks for
it. What cannot be had of a cluster is said here, for that client (ray_client.py) too.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from moe_cluster.errors import ClusterError

ANSWER_S = 15.0
TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray looks for a token last."""


def job_details(
    address: str, job_id: str, environment: Mapping[str, str] = os.environ
) -> dict[str, Any] | None:
    """The fields of Ray's JobDetails; None if the cluster at `address` knows no such job. Raises ClusterError."""
    url = f"{address.rstrip('/')}/api/jobs/{quote(job_id, safe='')}"
    try:
        with urlopen(Request(url, headers=authorization(environment)), timeout=ANSWER_S) as answer:
            return dict(json.load(answer))
    except HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        if error.code == 404:
            return None
        if error.code in (401, 403):
            raise refused_token(address, said) from None
        raise ClusterError(
            f"--address {address}: the Ray cluster would not tell of job {job_id}: {said}"
        ) from None
    except (OSError, ValueError) as error:
        raise no_answer(address, error.reason if isinstance(error, URLError) else error) from None


def authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """The header with the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or TOKEN_FILE, if Ray is told to use one."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
        try:
            token = path.read_text().strip()
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_MODE=token: {path} cannot be read ({error.strerror}); set RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's own token"
            ) from None
    return {"Authorization": f"Bearer {token}"}


def refused_token(address: str, said: str) -> ClusterError:
    """What to say where the token is not the cluster's."""
    return ClusterError(
        f"--address {address}: the Ray cluster refused the token ({said}); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        "or RAY_AUTH_TOKEN_PATH to the cluster's own"
    )


def no_answer(address: str, why: object) -> ClusterError:
    """What to say where nobody answers, or not as a Ray cluster does."""
    return ClusterError(
        f"--address {address}: there is no answer ({why}); is this the address of a Ray cluster's dashboard, and can "
        "this host reach it?"
    )
