"""What is found out about this node, and what is said of nodes that are not well or not alike."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

from moe_cluster.node import condition
from moe_cluster.node.bad_nodes import left_out
from moe_cluster.node.condition import Report, read, report
from moe_cluster.node.health_rules import problems, problems_alone
from moe_cluster.node.nvml import Gpu

ROOT = Path(__file__).parents[4]
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "moe-train": "0.1.0", "commit": None, "code": "abc"}
WELL = Report(
    host="node1",
    address="10.0.0.1",
    interface=None,
    can_listen=True,
    run_dir_free_gib=100.0,
    tmp_free_gib=10.0,
    shm_free_gib=10.0,
    memory_free_gib=10.0,
    clock_ahead_s=0.1,
    gpus=[],
    gpu_note="no GPU: none",
    xids=[],
    versions=VERSIONS,
)


def command(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster", ROOT / "kernels")))
    return subprocess.run(
        [sys.executable, "-m", "moe_cluster.node.health", *words],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def said(*reports: Report) -> list[str]:
    return [str(problem) for problem in problems(reports)]


def test_this_node_is_reported_and_its_report_reads_back(tmp_path: Path) -> None:
    done = command("--run-dir", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    found = read(done.stdout)
    assert asdict(found) == json.loads(done.stdout)
    assert (found.run_dir_free_gib or 0) > 0
    assert found.can_listen
    assert found.versions["python"] == sys.version.split()[0]
    assert found.clock_ahead_s == pytest.approx(0, abs=2)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_off_is_measured_by_the_time_that_a_file_gets(tmp_path: Path) -> None:
    late = report(tmp_path, now=lambda: time.time() - 34)
    assert late.clock_ahead_s == pytest.approx(-34, abs=1)


def test_a_run_folder_that_cannot_be_used_has_no_space_and_no_clock(tmp_path: Path) -> None:
    found = report(tmp_path / "nowhere")
    assert (found.run_dir_free_gib, found.clock_ahead_s) == (None, None)


def test_the_digest_of_the_code_changes_with_a_file_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(condition, "PACKAGES", (package.name,))
    before = condition.versions()["code"]
    (package / "notes.txt").write_text("no code")
    assert condition.versions()["code"] == before
    (package / "__init__.py").write_text("x = 1\n")
    assert condition.versions()["code"] != before


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a host on which the imagined library is installed."""
    compiler = require_tool("gcc", "gcc")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_gpus_are_read_through_nvml_and_what_they_do_not_tell_is_null(
    nvml: dict[str, str], tmp_path: Path
) -> None:
    found = read(command("--run-dir", str(tmp_path), "--json", **nvml).stdout)
    sound, hot = found.gpus
    assert sound == Gpu(0, "Imagined GPU", None, 80.0, 2.0, 40, 90, 0, False, False)
    assert (hot.temperature_c, hot.ecc_errors, hot.is_worn) == (95, 3, True)
    assert found.gpu_note == ""


def test_a_sick_gpu_and_a_lost_one_keep_a_run_from_starting(nvml: dict[str, str], tmp_path: Path) -> None:
    sick = command("--run-dir", str(tmp_path), **nvml)
    assert sick.returncode == 1
    assert "GPU 1 has faulty memory that it cannot replace; exclude the node" in sick.stdout
    assert "GPU 1 has had 3 uncorrected memory errors since its driver was loaded; reset it" in sick.stdout
    assert "GPU 1 is at 95 C and slows down at 90 C; check its cooling" in sick.stdout
    assert "GPU 0" not in sick.stdout
    lost = command("--run-dir", str(tmp_path), **nvml, GPU_LOST="1")
    assert "GPU 1 does not answer (GPU is lost); reset it, or exclude the node" in lost.stdout


@pytest.mark.parametrize(
    ("changes", "sentence", "is_fatal"),
    [
        (
            {"clock_ahead_s": -34.0},
            "node1: its clock is 34 s behind that of the run folder's server; set NTP, or exclude the node",
            False,
        ),
        ({"clock_ahead_s": 5.0}, "node1: its clock is 5 s ahead of that", False),
        ({"run_dir_free_gib": None}, "node1: the run folder cannot be written; mount it there", True),
        ({"run_dir_free_gib": 0.5}, "the run folder's disk has 0.50 GiB left, less than 1 GiB;", False),
        ({"run_dir_free_gib": 0.0}, "the run folder's disk has 0.00 GiB left", True),
        ({"tmp_free_gib": 0.1}, "the disk of temporary files has 0.10 GiB left", False),
        ({"shm_free_gib": 0.0625}, "/dev/shm, through which workers exchange rows, has 0.06 GiB left", False),
        ({"memory_free_gib": 0.2}, "its memory has 0.20 GiB left", False),
        ({"can_listen": False}, "no port can be opened", True),
        (
            {"xids": ["NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus."]},
            "the GPU driver has reported since boot: NVRM: Xid (PCI:0000:3b:00): 79",
            False,
        ),
        ({"gpus": [Gpu(0, needs_reset=True)]}, "GPU 0 has faulty memory that is replaced at a reset", False),
    ],
)
def test_what_is_wrong_with_a_node_is_said_with_a_way_out(
    changes: dict[str, Any], sentence: str, is_fatal: bool
) -> None:
    (problem,) = problems([replace(WELL, **changes)])
    assert sentence in str(problem)
    assert problem.is_fatal is is_fatal


@pytest.mark.parametrize(
    ("changes", "workers", "uses_gpus", "is_fatal"),
    [
        ({"run_dir_free_gib": None}, 1, False, True),
        ({"run_dir_free_gib": 0.0}, 1, False, False),
        ({"tmp_free_gib": 0.0}, 2, False, False),
        ({"shm_free_gib": 0.0}, 2, False, False),
        ({"can_listen": False}, 1, False, False),
        ({"can_listen": False}, 2, False, True),
        ({"gpus": [Gpu(0), Gpu(1, error="GPU is lost")]}, 2, False, False),  # a run on the CPU
        ({"gpus": [Gpu(0), Gpu(1, error="GPU is lost")]}, 1, True, False),  # on the other one
        ({"gpus": [Gpu(0), Gpu(1, error="GPU is lost")]}, 2, True, True),
        ({"gpus": [Gpu(0, is_worn=True)]}, 1, True, True),
    ],
)
def test_the_only_node_of_a_run_is_refused_only_for_what_the_run_needs_for_certain(
    changes: dict[str, Any], workers: int, uses_gpus: bool, is_fatal: bool
) -> None:
    (problem,) = problems_alone(replace(WELL, **changes), workers, uses_gpus)
    assert (problem.host, problem.is_fatal) == ("node1", is_fatal)


def test_one_worker_exchanges_nothing_through_shared_memory() -> None:
    assert problems_alone(replace(WELL, shm_free_gib=0.0), 1, False) == []


def test_a_report_for_one_node_asks_nothing_that_only_others_need(tmp_path: Path) -> None:
    alone, full = report(tmp_path, is_alone=True), report(tmp_path)
    assert (alone.address, alone.versions) == (None, {})
    assert (alone.host, alone.can_listen, alone.gpus) == (full.host, full.can_listen, full.gpus)


CHECK = """\
import pathlib, sys
from moe_cluster.errors import ClusterError
from moe_cluster.node.check import check_node
try:
    check_node(pathlib.Path(sys.argv[1]), 3, 2, True, print)
except ClusterError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_lost_gpu_that_a_run_on_one_node_needs_ends_its_attempt_and_is_left_out(
    nvml: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "attempts/3").mkdir(parents=True)
    own = {"PYTHONPATH": str(ROOT / "cluster"), "GPU_LOST": "1", "SLURMD_NODENAME": "gpu-17", **nvml}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    sentence = "GPU 1 does not answer (GPU is lost); reset it, or exclude the node"
    assert done.stderr == f"refused: gpu-17: {sentence}\n"
    assert left_out(tmp_path) == {"gpu-17": sentence}


@pytest.mark.parametrize(("wish", "is_told"), [("auto", True), ("never", False)])
@pytest.mark.usefixtures("moe_train")
def test_a_run_of_one_worker_looks_at_its_node_first_and_does_without_a_gpu_it_does_not_use(
    nvml: dict[str, str], tmp_path: Path, wish: str, is_told: bool
) -> None:
    words = ["--run-dir", str(tmp_path / "run"), "job.device=cpu", f"job.preflight={wish}", "steps=1"]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster", ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-m", "moe_train.cli", "run", "small.yaml", *words],
        env={**os.environ, "PYTHONPATH": path, "GPU_LOST": "1", **nvml},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run/attempts/1/rank-0/log.txt").read_text()
    assert ("GPU 1 does not answer (GPU is lost)" in log) is is_told


def test_nothing_is_said_of_nodes_that_are_well_or_of_a_programs_own_xid() -> None:
    mistake = "NVRM: Xid (PCI:0000:3b:00): 31, pid=1, name=python, MMU fault"
    assert said(WELL, replace(WELL, host="node2", xids=[mistake])) == []
    assert said(replace(WELL, address="127.0.1.1")) == []


def test_a_name_that_stands_for_the_node_itself_is_told_only_where_others_need_it() -> None:
    lonely = replace(WELL, host="node2", address="127.0.1.1")
    (sentence,) = said(WELL, lonely)
    assert sentence.startswith("node2: its own name resolves to 127.0.1.1, at which no other node finds it")
    assert said(WELL, replace(lonely, interface="eth0")) == []


def test_versions_that_differ_are_refused_and_name_the_nodes() -> None:
    older = {**VERSIONS, "torch": "2.12.0", "code": "def", "commit": "0123456789"}
    found = problems([WELL, replace(WELL, host="node2", versions=older), replace(WELL, host="node3")])
    assert [problem.is_fatal for problem in found] == [True, True]
    assert str(found[0]).startswith(
        "torch differs: 2.13.0 on node1, node3; 2.12.0 on node2; install the same"
    )
    assert "code differs: abc on node1, node3; def (commit 01234567) on node2" in str(found[1])


def test_gpus_that_differ_are_told() -> None:
    with_gpu = replace(WELL, host="node2", gpus=[Gpu(0, name="H100"), Gpu(1, name="H100")])
    (sentence,) = said(WELL, with_gpu)
    assert sentence.startswith("GPUs differ: no GPU on node1; 2 x H100 on node2")


def test_reports_in_files_are_compared(tmp_path: Path) -> None:
    for number, torch in ((1, "2.13.0"), (2, "2.12.0")):
        one = replace(WELL, host=f"node{number}", versions={**VERSIONS, "torch": torch})
        (tmp_path / f"{number}.json").write_text(json.dumps(asdict(one)))
    done = command("--compare", str(tmp_path / "1.json"), str(tmp_path / "2.json"))
    assert done.returncode == 1
    assert done.stdout.startswith("error: torch differs: 2.13.0 on node1; 2.12.0 on node2")
