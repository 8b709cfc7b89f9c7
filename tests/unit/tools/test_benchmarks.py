"""The measuring tools at tiny sizes: their rows have the keys that programs read. No time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

ROOT = Path(__file__).resolve().parents[3]


def _rows(tmp_path: Path, tool: str, *arguments: str) -> list[dict[str, Any]]:
    found = tmp_path / "rows.json"
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # ninja is in a venv
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cluster"), str(ROOT / "kernels")]),
    }
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments, "--json", str(found)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "peak memory" in done.stdout
    return list(json.loads(found.read_text())["rows"])


def test_the_layer_benchmark_compares_three_layers_with_the_floor(tmp_path):
    require_tool("g++", "g++")  # DeepSpeed compiles when it is first used on a CPU
    rows = _rows(tmp_path, "bench_moe_layer.py", "--quick", "--tokens=128", "--budget-s=0", "--markdown")
    assert {row["layer"] for row in rows} == {"moe_train", "deepspeed", "huggingface"}
    assert {(row["num_experts"], row["top_k"]) for row in rows} == {(8, 1), (8, 2), (64, 1), (64, 2)}
    for row in rows:
        assert {"layer", "num_experts", "d_model", "top_k", "dtype", "over_floor"} <= set(row)
        assert row["over_floor"] > 0


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.distributed_exhaustive)])
def test_the_step_benchmark_compares_four_systems_with_each_number_of_workers(tmp_path, workers):
    require_tool("g++", "g++")  # DeepSpeed compiles when it is first used on a CPU
    sizes = ["--experts=2", "--d-model=32", "--sequences=2", "--rounds=1", "--settle=1"]
    rows = _rows(tmp_path, "bench_step.py", *sizes, f"--workers={workers}")
    assert [(row["system"], row["num_experts"]) for row in rows] == [
        ("dense", 0),
        ("moe_train", 2),
        ("deepspeed_capacity", 2),
        ("deepspeed_dropless", 2),
    ]
    for row in rows:
        assert set(row) == {"system", "num_experts", "workers", "tokens_per_second", "over_dense", "cv"}
        assert row["workers"] == workers
        assert row["tokens_per_second"] > 0


@pytest.mark.distributed_exhaustive
def test_the_benchmark_of_overlap_compares_every_value_and_one_sided(tmp_path):
    require_tool("g++", "g++")
    rows = _rows(tmp_path, "bench_overlap.py", "--rounds=1", "--layers=1")
    assert [row["overlap"] for row in rows] == ["none", "shared", "halves", "one_sided"]
    for row in rows:
        assert min(row["seconds"], row["over_none"], row["cpu_over_none"]) > 0


@pytest.mark.distributed_exhaustive
def test_the_parallel_benchmark_compares_two_engines_with_two_systems(tmp_path):
    require_tool("g++", "g++")
    sizes = ["--experts=2", "--d-model=32", "--sequences=2", "--layers=1", "--rounds=1", "--settle=1"]
    rows = _rows(tmp_path, "bench_parallel.py", *sizes)
    speeds, splits, recomputed, goals = (
        [row for row in rows if key in row] for key in ("over_native", "wait_ms", "kept_mib", "goal")
    )
    losses = {row["system"]: row["loss"] for row in speeds}
    assert losses["deepspeed"] == pytest.approx(losses["native"], rel=1e-5)
    for other in ("native_recompute_block", "deepspeed_moe", "megatron"):
        assert losses[other] == pytest.approx(losses["native"], rel=1e-3), other
    assert set(losses) - {row["system"] for row in splits} == {"one_process", "two_apart"}
    for row in splits:
        assert min(row["compute_ms"], row["gather_reduce_ms"], row["wait_ms"]) > 0, row
        assert row["dispatch_ms"] > 0, row
    kept = {row["recompute"]: row["kept_mib"] for row in recomputed}
    assert kept["block"] < kept["attention"] < kept["none"]
    assert {(row["time of"], row["over"]) for row in goals} >= {
        ("native", "megatron"),
        ("deepspeed", "deepspeed_moe"),
        ("deepspeed", "native"),
        ("one_process", "native"),
    }


def test_the_monitor_benchmark_gives_its_share_of_a_step_for_three_models(tmp_path):
    rows = _rows(tmp_path, "bench_monitor.py", "--rounds=1", "--threads=1", "--sequences=1", "--markdown")
    models = [("switch_tiny", 8), ("d256_e8", 8), ("d256_e32", 32)]
    assert [(row["model"], row["num_experts"], row["log_every"]) for row in rows] == [
        (model, experts, log_every) for model, experts in models for log_every in (1, 10)
    ]
    for row in rows:
        assert row["over_step"] == row["monitor_ms"] / row["step_ms"] > 0
    assert rows[0]["monitor_ms"] > rows[1]["monitor_ms"]


def test_the_watch_benchmark_gives_the_heartbeats_share_of_a_step(tmp_path):
    (row,) = _rows(tmp_path, "bench_watch.py", "--seconds=1.5", "--sequences=1", "--markdown")
    assert row["over_step"] > row["thread_ms_per_s"] / 1000 > 0


def test_the_router_benchmark_compares_one_pass_with_torchs_operations(tmp_path):
    rows = _rows(tmp_path, "bench_router.py", "--rounds=1", "--markdown")
    assert (64, 2) in {(row["num_experts"], row["top_k"]) for row in rows}
    for row in rows:
        assert {"num_experts", "top_k", "speedup"} <= set(row)
        assert row["speedup"] > 0


def test_the_dispatch_benchmark_compares_with_gloo_and_with_memcpy(tmp_path):
    require_tool("g++", "g++")
    rows = _rows(tmp_path, "bench_dispatch.py", "--quick", "--rounds=1", "--ranks=2", "--markdown")
    (row,) = rows
    assert {"ranks", "tokens", "hidden", "dtype", "top_k", "cpu_over_gloo", "bandwidth_over_memcpy"} <= set(
        row
    )
    assert row["cpu_over_gloo"] > 0
    assert row["bandwidth_over_memcpy"] > 0
