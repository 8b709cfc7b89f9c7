"""What commands that hand one run over do to each other, and to jobs that could not be written down."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from small_run import RECIPE, Command, write_corpus
from stand_in_slurm import ROOT, begin, called, write_programs

from moe_cluster import records
from moe_cluster.job import Resources
from moe_cluster.records import JobRecord
from moe_train.config.load import load_recipe

COMPLETED = "JobId=41 JobName=small\n   JobState=COMPLETED Reason=None\n   NodeList=node1\n"


@pytest.fixture
def terminal(tmp_path: Path) -> Path:
    """A working directory with a recipe, and a Slurm that takes a second for a job."""
    write_corpus(tmp_path / "corpus")
    (tmp_path / "small.yaml").write_text(RECIPE.format(corpus="corpus"))
    write_programs(tmp_path)
    return tmp_path


def test_of_two_submissions_at_once_one_is_taken_and_keeps_its_recipe(terminal: Path) -> None:
    words = ("submit", "small.yaml", "--cluster", "slurm", "--run-dir", "run")
    both = [begin(terminal, *words, f"seed={seed}") for seed in (1, 2)]
    ended = [process.communicate(timeout=60) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], ended
    won, lost = codes.index(0), codes.index(1)
    (job,) = records.read(terminal / "run")
    assert f"submitted {job}" in ended[won][0]
    assert f"run_dir={terminal / 'run'}" in ended[lost][1]
    assert "Traceback" not in ended[lost][1]
    assert len(called(terminal, "sbatch")) == 1
    assert load_recipe(terminal / "run/jobs/recipe-1.yaml").seed == won + 1


def test_a_job_that_cannot_be_written_down_is_ended_again_and_named(terminal: Path) -> None:
    write_programs(
        terminal,
        sbatch="echo 41",
        scontrol=f"case $2 in hostnames) echo node1;; *) echo '{COMPLETED}';; esac",
    )
    run_dir = terminal / "run"
    run_dir.mkdir()
    for number in range(30):
        records.append(run_dir, JobRecord("slurm", str(number), 0.0, "u", "h", Resources()))
    before = (run_dir / "jobs.jsonl").read_bytes()
    words = ("submit", "small.yaml", "--cluster", "slurm", "--run-dir", "run")
    process = begin(terminal, *words, largest_file=len(before) + 10)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"run_dir={run_dir}: cannot be written (File too large: {run_dir / 'jobs.jsonl'})" in said
    assert "its job slurm:41, which could not be recorded, was cancelled" in said
    assert "Traceback" not in said
    assert called(terminal, "scancel") == ["41"]
    assert (run_dir / "jobs.jsonl").read_bytes() == before


@pytest.fixture
def full_ray() -> Iterator[str]:
    """The address of a server that answers as a Ray's dashboard does: it takes one job, and no second."""

    class Handler(BaseHTTPRequestHandler):
        taken: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            self.answer(200, {"version": "4", "ray_version": "2.0.0", "ray_commit": "x", "session_name": "x"})

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.taken:
                self.answer(500, "the head is full")
            else:
                self.taken.append(job["submission_id"])
                self.answer(200, {"job_id": job["submission_id"], "submission_id": job["submission_id"]})

        def answer(self, code: int, content: object) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *words: object) -> None:
            """Not to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_jobs_of_a_sweep_that_were_taken_before_one_was_refused_are_on_record(
    moe_train: Command, tmp_path: Path, full_ray: str
) -> None:
    words = ("sweep", "small.yaml", "seed=0,1,2", "--cluster", "ray", "--address", full_ray)
    ended = moe_train(*words, "--dir", str(tmp_path / "sweep"))
    ended.refuses("the head is full", "1 of 3 runs were submitted; run the same command again", code=1)
    jobs = {seed: records.read(tmp_path / f"sweep/seed={seed}") for seed in range(3)}
    assert [len(found) for found in jobs.values()] == [1, 0, 0]
    recipes = sorted((tmp_path / "sweep").rglob("recipe-*.yaml"))
    assert recipes == [tmp_path / "sweep/seed=0/jobs/recipe-1.yaml"]
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["seed=0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that has no name")
def test_a_user_without_a_name_is_a_number() -> None:
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:]; from moe_train.jobs.submission import user_name\n"
        "os.setuid(54321); print(user_name())"
    )
    paths = [str(ROOT / name) for name in (".", "cluster", "kernels")]
    unnamed = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")
    }
    done = subprocess.run([sys.executable, "-c", code, *paths], env=unnamed, capture_output=True, text=True)
    assert done.stdout == "54321\n", done.stderr
