"""How a job stands, asked of a server on this host that answers as a Ray cluster's dashboard does; a real one is asked
by tests/cluster."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError
from moe_cluster.executor import JobState
from moe_cluster.ray.executor import RayExecutor
from moe_cluster.ray.rest import authorization, job_details

Answer = Callable[[int, str], str]
RUN_DIR = Path("/shared/runs/small")


@pytest.fixture
def dashboard() -> Iterator[Answer]:
    """Serves a status and a text to whoever asks; returns its address. What was asked is in `asked` of the function."""
    servers: list[HTTPServer] = []

    def serve(code: int, text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                serve.asked = (self.path, self.headers.get("Authorization"))
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *words: object) -> None:
                """Not to the terminal."""

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def details(**more: object) -> str:
    return json.dumps({"status": "RUNNING", "message": None, "driver_agent_http_address": None, **more})


@pytest.mark.parametrize(
    ("more", "state", "reason", "nodes"),
    [
        ({"driver_agent_http_address": "http://10.0.0.4:52365"}, JobState.RUNNING, "", ("10.0.0.4",)),
        ({"status": "PENDING", "message": "waiting"}, JobState.PENDING, "waiting", ()),
        ({"status": "SUCCEEDED"}, JobState.DONE, "", ()),
        (
            {"status": "FAILED", "message": "exit code 1, last available logs: x", "driver_exit_code": 1},
            JobState.FAILED,
            "exit code 1",
            (),
        ),
        ({"status": "FAILED", "driver_exit_code": 75}, JobState.CANCELLED, "", ()),
        ({"status": "STOPPED"}, JobState.CANCELLED, "", ()),
    ],
)
def test_ray_s_words_for_a_job_become_ours(
    dashboard: Answer, more: dict[str, object], state: JobState, reason: str, nodes: tuple[str, ...]
) -> None:
    found = RayExecutor({"address": dashboard(200, details(**more))}).status("small-1", RUN_DIR)
    assert (found.state, found.reason, found.nodes) == (state, reason, nodes)


@pytest.mark.parametrize("answer", ["{}", details(status="DREAMING")])
def test_an_answer_without_a_known_state_is_one_sentence(dashboard: Answer, answer: str) -> None:
    with pytest.raises(ClusterError, match="returned an unknown state of job small-1"):
        RayExecutor({"address": dashboard(200, answer)}).status("small-1", RUN_DIR)


def test_a_job_that_the_cluster_does_not_know_is_unknown(dashboard: Answer) -> None:
    address = dashboard(404, "Job small-1 does not exist")
    found = RayExecutor({"address": address}).status("small-1", RUN_DIR)
    assert (found.state, found.reason) == (JobState.UNKNOWN, f"the cluster at {address} has no job small-1")


def test_a_name_of_a_job_is_no_way_to_another_page(dashboard: Answer) -> None:
    job_details(f"{dashboard(200, details())}/", "../nodes?x=1", {})
    assert dashboard.asked == ("/api/jobs/..%2Fnodes%3Fx%3D1", None)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (401, "Unauthorized: Missing authentication token", "refused the token (Unauthorized: Missing"),
        (403, "Forbidden: Invalid authentication token", "refused the token (Forbidden: Invalid"),
        (500, "no agent there", "returned no state of job small-1 (500): no agent there"),
        (200, "<html>a wiki</html>", "there is no answer"),
    ],
)
def test_what_a_cluster_refuses_is_told_in_its_own_words(
    dashboard: Answer, code: int, text: str, expected: str
) -> None:
    address = dashboard(code, text)
    with pytest.raises(ClusterError) as refusal:
        job_details(address, "small-1", {})
    assert str(refusal.value).startswith(f"--address {address}: ")
    assert expected in str(refusal.value)


def test_the_token_is_found_where_ray_looks_for_it(dashboard: Answer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of the file\n")
    of_file = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    job_details(dashboard(200, details()), "small-1", of_file)
    assert dashboard.asked == ("/api/jobs/small-1", "Bearer of the file")
    assert authorization({**of_file, "RAY_AUTH_TOKEN": "given"}) == {"Authorization": "Bearer given"}
    assert authorization({"RAY_AUTH_TOKEN": "given"}) == {}
    with pytest.raises(ClusterError, match="nowhere cannot be read"):
        authorization({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"})
