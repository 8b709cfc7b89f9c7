"""A mock of the W&B server on loopback, as much of it as the real client needs; nothing leaves the machine.

It answers the client's GraphQL operations and keeps what the client streams: rows, config, and whether the
run ended. It is a stand-in: that a test passes against it says nothing of wandb.ai itself.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "local-" + "0" * 40


@dataclass
class ReceivedRun:
    """What the server holds of one run."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    is_complete: bool = False


class FakeWandb(ThreadingHTTPServer):
    """The server; `runs` is by run id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, ReceivedRun] = {}
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point the real client here."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_address[1]}",
            "WANDB_API_KEY": API_KEY,
            "WANDB_ERROR_REPORTING": "false",
        }


@contextmanager
def fake_wandb() -> Iterator[FakeWandb]:
    """A server for the length of a `with` block."""
    server = FakeWandb()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWandb

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        with self.server.lock:
            if stream:
                self._answer(self._receive(stream[1], json.loads(body)))
            elif self.path == "/graphql":
                self._answer(self._graphql(json.loads(body)))
            else:
                self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _receive(self, run_id: str, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[run_id]
        files = sent.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            run.history[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if sent.get("complete"):
            run.is_complete, run.exit_code = True, sent.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = request.get("operationName") or (found[1] if found else "")
        entity = {"id": "entity", "name": "local"}
        if operation == "RunResumeStatus":
            bucket = self._bucket(variables["name"]) if variables["name"] in self.server.runs else None
            return {
                "data": {"model": {"id": "project", "name": "project", "entity": entity, "bucket": bucket}}
            }
        if operation == "UpsertBucket":
            name = variables.get("name") or variables["id"]
            is_new = name not in self.server.runs
            run = self.server.runs.setdefault(name, ReceivedRun())
            if variables.get("config"):
                run.config |= json.loads(variables["config"])
            bucket = self._bucket(name) | {"project": {"id": "project", "name": "project", "entity": entity}}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": is_new}}}
        if operation == "CreateRunFiles":
            uploads = [{"name": name, "uploadUrl": self._upload_url(name)} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": uploads}}}
        if operation == "RunStoppedStatus":
            return {"data": {"project": {"run": {"stopped": False}}}}
        if "viewer" in query or "serverInfo" in query:
            viewer = {
                "id": "user",
                "entity": "local",
                "username": "local",
                "flags": "{}",
                "teams": {"edges": []},
            }
            server = {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "features": []}
            return {"data": {"viewer": viewer, "serverInfo": server}}
        return {"errors": [{"message": f"the mock does not know {operation}"}]}

    def _upload_url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/upload/{name}"

    def _bucket(self, run_id: str) -> dict[str, Any]:
        run = self.server.runs[run_id]
        return {
            "id": run_id,
            "name": run_id,
            "displayName": run_id,
            "description": "",
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "sweepName": None,
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
