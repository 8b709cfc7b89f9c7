"""What the Jobs API of a Ray cluster is asked for: the golden request, and whatever must not get into one."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.job import JobSpec, Resources
from moe_cluster.ray.executor import RayExecutor
from moe_cluster.ray.settings import SETTINGS
from moe_cluster.share import SHARE_VARIABLE, Share

ADDRESS = {"address": "http://head:8265"}
SMALL = JobSpec("small", Path("/shared/runs/small"), ("run", "/shared/small.yaml", "--workers", "2"))


def request(job: JobSpec) -> dict:
    return json.loads(RayExecutor(ADDRESS).render(job))


def test_a_request_has_the_command_its_code_and_where_the_run_is() -> None:
    asked = request(SMALL)
    assert asked["entrypoint"] == (
        "exec python -P -m moe_train.cli run /shared/small.yaml --workers 2 --launcher ray"
    )
    packages = [Path(package).name for package in asked["runtime_env"]["py_modules"]]
    assert packages == ["moe_train", "moe_cluster", "moe_kernels"]
    assert all(Path(package, "__init__.py").exists() for package in asked["runtime_env"]["py_modules"])
    assert asked["metadata"] == {"run_dir": "/shared/runs/small", "name": "small"}
    assert asked["submission_id"] == "small-XXXXXXXX"
    assert set(asked["runtime_env"]["env_vars"]) == {
        *SETTINGS, SHARE_VARIABLE, "MOE_TRAIN_JOB", "RAY_JOB_STOP_WAIT_TIME_S"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "share"),
    [
        (Resources(), Share({"CPU": 1}, per_node=1)),
        (
            Resources(nodes=2, workers_per_node=4, gpus_per_worker=1, cpus_per_worker=6, memory_gib=64),
            Share({"CPU": 6, "GPU": 1, "memory": 16 * 2**30}, per_node=4),
        ),
    ],
)
def test_what_a_worker_needs_reaches_the_launcher(resources: Resources, share: Share) -> None:
    variables = request(replace(SMALL, resources=resources))["runtime_env"]["env_vars"]
    assert Share(**json.loads(variables[SHARE_VARIABLE])) == share


@pytest.mark.parametrize("word", ["$(touch harm)", "`touch harm`", "'; touch harm; '", "a && b", "~", "a\nb"])
def test_no_word_of_a_command_reaches_a_shell_unquoted(word: str) -> None:
    entrypoint = request(replace(SMALL, name=word, command=("run", word)))["entrypoint"]
    assert shlex.split(entrypoint)[4:] == ["moe_train.cli", "run", word, "--launcher", "ray"]


def test_a_job_is_named_by_letters_that_an_address_may_have() -> None:
    assert request(replace(SMALL, name="../x?y=1 é"))["submission_id"] == ".._x_y_1__-XXXXXXXX"


@pytest.mark.parametrize(
    ("line", "code", "said"), [("modul load cuda", 127, ""), ("export GREETING=hello", 3, "hello")]
)
def test_lines_of_setup_come_first_and_end_the_job_where_they_fail(
    tmp_path: Path, line: str, code: int, said: str
) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nprintf %s "$GREETING"; exit 3\n')
    (tmp_path / "python").chmod(0o755)
    entrypoint = request(replace(SMALL, setup=(line,)))["entrypoint"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.run(["sh", "-c", entrypoint], env=environment, capture_output=True, text=True)
    assert (job.returncode, job.stdout) == (code, said)
    assert ("moe-train: setup ended with exit code 127" in job.stderr) == (code == 127)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (replace(SMALL, directives=("--x",)), "--directive --x"),
        (replace(SMALL, resources=Resources(time_limit_min=5)), "--time-limit 5"),
        (replace(SMALL, after=("41",)), "--after 41"),
    ],
)
def test_what_ray_does_not_have_is_refused(job: JobSpec, said: str) -> None:
    with pytest.raises(JobError, match=said):
        request(job)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--address (none)"),
        ({"address": "head:6379"}, "--address head:6379"),
        ({"address": "http://me:secret@head:8265"}, "--address http://...@head:8265: is not"),
        ({**ADDRESS, "partition": "gpu"}, "--option partition"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(JobError) as caught:
        RayExecutor(options)
    assert said in str(caught.value)


def test_a_limit_on_jobs_at_once_is_refused() -> None:
    with pytest.raises(JobError, match="--at-once 2"):
        RayExecutor(ADDRESS).submit_many([SMALL], 2)


def test_an_address_where_nobody_listens_is_one_sentence() -> None:
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:9: there is no answer"):
        RayExecutor({"address": "http://127.0.0.1:9"}).status("small-1", Path("/shared/runs/small"))
