"""The Jobs API of a Ray cluster, each question bounded in time and each failure one message with Ray's own words."""

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
"""Before a log is asked for again whose connection broke."""


class _BoundedClient(JobSubmissionClient):
    """Ray's client waits for ever on a host that does not answer."""

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **more)


class Client:
    """What is asked of one cluster. Every method raises ClusterError if it refuses or does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._explained("be reached"):
            self._client = _BoundedClient(address)
        # It tells of every upload and connection.
        logging.getLogger("ray.dashboard").setLevel(logging.WARNING)

    def submit(self, request: Mapping[str, Any]) -> str:
        """Hand over a job; returns its id."""
        with self._explained(f"take job {request['submission_id']}"):
            return str(self._client.submit_job(**request))

    def logs(self, job_id: str) -> str:
        """All that a job has printed."""
        with self._explained(f"give the output of job {job_id}"):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Have SIGTERM sent to a job."""
        with self._explained(f"stop job {job_id}"):
            self._client.stop_job(job_id)

    def tail(self, job_id: str) -> Iterator[str]:
        """Pieces of a job's output from its beginning, as they come; ends with the job, or with the connection."""
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
            said = _words(error).partition(". ")[0].rstrip(".")  # more follows, for who sets a cluster up
            raise refused_token(self.address, said) from None
        except (requests.RequestException, ConnectionError) as error:
            raise no_answer(self.address, _words(error)) from None
        except (RuntimeError, ValueError) as error:
            raise ClusterError(
                f"--address {self.address}: the Ray cluster would not {what}: {_words(error)}"
            ) from None


def followed(client: Client, job_id: str, is_over: Callable[[], bool]) -> Iterator[str]:
    """Lines of a job's output until it is over; a connection that breaks before that is made again."""
    seen, line = 0, ""
    while True:
        was_over, position = is_over(), 0
        for piece in client.tail(job_id):
            new = piece[max(0, seen - position) :]
            position += len(piece)
            seen = max(seen, position)
            *lines, line = (line + new).split("\n")
            yield from lines
        if was_over:
            break
        time.sleep(AGAIN_S)
    if line:
        yield line


def _words(error: BaseException) -> str:
    """The last line that Ray says, which has the cause; those before are its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip().strip('."')]
    return lines[-1] if lines else type(error).__name__
