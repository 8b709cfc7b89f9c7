"""Calls the Jobs API of a Ray cluster with timeouts, and turns each failure into one message that quotes Ray."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from moe_cluster.errors import ClusterError
from moe_cluster.ray.rest import ANSWER_S, CONNECT_S, no_answer, refused_token

AGAIN_S = 1.0
"""Seconds before a log is requested again after its connection broke."""


class _BoundedClient(JobSubmissionClient):
    """Adds timeouts to Ray's client, which waits for ever for a host that does not answer."""

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **more)


class Client:
    """Sends requests to one cluster. Every method raises ClusterError if it refuses or does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._explained("be reached"):
            self._client = _BoundedClient(address)
        # It logs every upload and connection.
        logging.getLogger("ray.dashboard").setLevel(logging.WARNING)

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a job; returns its id."""
        with self._explained(f"take job {request['submission_id']}"):
            return str(self._client.submit_job(**request))

    def logs(self, job_id: str) -> str:
        """Returns the whole output of a job."""
        with self._explained(f"give the output of job {job_id}"):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Send SIGTERM to a job."""
        with self._explained(f"stop job {job_id}"):
            self._client.stop_job(job_id)

    def tail(self, job_id: str) -> Iterator[str]:
        """Yield a job's output from its beginning, piece by piece; ends with the job, or with the connection."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            while True:
                try:
                    yield loop.run_until_complete(anext(pieces))
                except (StopAsyncIteration, RuntimeError, OSError, aiohttp.ClientError):
                    return

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            words = _words(error).partition(". ")[0].rstrip(".")  # the rest is for administrators
            raise refused_token(self.address, words) from None
        except (requests.RequestException, ConnectionError) as error:
            raise no_answer(self.address, _words(error)) from None
        except (RuntimeError, ValueError) as error:
            raise ClusterError(
                f"--address {self.address}: the Ray cluster could not {what}: {_words(error)}"
            ) from None


def followed(client: Client, job_id: str, is_over: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a job's output until it ends; reconnects if the connection breaks before that."""
    length, line = 0, ""
    while True:
        was_over, position = is_over(), 0
        for piece in client.tail(job_id):
            new = piece[max(0, length - position) :]
            position += len(piece)
            length = max(length, position)
            *lines, line = (line + new).split("\n")
            yield from lines
        if was_over:
            break
        time.sleep(AGAIN_S)
    if line:
        yield line


def _words(error: BaseException) -> str:
    """Returns the last line of Ray's error, which has the cause; those before are a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip().strip('."')]
    return lines[-1] if lines else type(error).__name__
