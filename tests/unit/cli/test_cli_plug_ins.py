"""A recipe with kinds of an installed package: shown, trained here and by workers, resumed, and refused without it."""

import json
import sys
from pathlib import Path

import pytest
from installed_package import install, install_acme_moe

ENGINE = """
    from dataclasses import dataclass
    from moe_train.config.kinds.engine import NativeEngineConfig
    from moe_train.config.registry import Kind

    @dataclass
    class SlowStartConfig(NativeEngineConfig):
        kind: str = "slow_start"

    SLOW_START = Kind(SlowStartConfig, "acme_engine.slow_start:SlowStartEngine")
"""
CODE = """
    from moe_train.engines.native import NativeEngine

    class SlowStartEngine(NativeEngine):
        def step(self, batches, step, stop_requested):
            return super().step(batches, step, stop_requested)
"""
KINDS = (
    "moe.router.kind=cosine",
    "moe.router.z_coefficient=0.01",
    "objective.kind=calm_language",
    "engine.kind=slow_start",
    "monitor.callbacks=[losses]",
)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder on the path of this process and of those that it starts, whose modules are forgotten at the end."""
    before, folder = set(sys.modules), tmp_path / "site"
    install_acme_moe(folder)
    modules = {"acme_engine/__init__.py": ENGINE, "acme_engine/slow_start.py": CODE}
    entries = {"moe_train.engines": {"slow_start": "acme_engine:SLOW_START"}}
    install(folder, modules, entries, name="acme-engine")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for name in {name for name in set(sys.modules) - before if name.startswith("acme_")}:
        del sys.modules[name]


def losses(run_dir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(set(row["losses"]) == {"balance", "z", "z_logits"} for row in rows if "loss" in row)
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_show_lists_the_keys_of_a_package_s_kinds_and_says_where_they_come_from(moe_train, site):
    shown = moe_train("show", "small.yaml", *KINDS)
    assert shown.code == 0, shown.errors
    assert "kind: cosine" in shown.output
    assert "moe.router.kind=cosine: comes from the package acme-moe 1.0" in shown.output
    assert "engine.kind=slow_start: comes from the package acme-engine 1.0" in shown.output
    moe_train("show", "small.yaml", "moe.router.kind=sine").refuses("moe.router.kind=sine", "cosine")


def test_a_run_with_kinds_of_a_package_trains_alike_here_and_on_two_workers_and_resumes(
    moe_train, site, tmp_path, monkeypatch
):
    here, workers = tmp_path / "here", tmp_path / "workers"
    for run_dir, more in ((here, ()), (workers, ("--workers", "2"))):
        ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), *more, *KINDS)
        assert ended.code == 0, ended.errors
    expected = losses(here)
    assert expected.keys() == {2, 4, 6}
    assert losses(workers) == pytest.approx(expected, rel=1e-5)
    written = [line.split() for line in (workers / "losses.txt").read_text().splitlines()]
    assert [int(step) for step, _ in written] == [2, 4, 6]
    more = moe_train(
        "run", str(workers / "recipe.yaml"), "--run-dir", str(workers), "steps=8", "--workers", "2"
    )
    assert more.code == 0, more.errors
    assert losses(workers).keys() == {2, 4, 6, 8}


def test_a_worker_without_the_package_says_which_kind_it_lacks(moe_train, site, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    ended = moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "run"), "--workers", "2", *KINDS)
    assert ended.code == 2
    assert "moe.router.kind=cosine: is not a known kind" in ended.errors


def test_a_package_that_breaks_is_one_message_before_anything_is_written(moe_train, site, tmp_path):
    (site / "acme_moe/cosine_config.py").write_text("import no_such_module\n")
    moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "run"), *KINDS).refuses(
        "moe.router.kind=cosine: entry point acme_moe:COSINE of the package acme-moe 1.0 cannot be loaded",
        "correct the package, or uninstall it",
    )
    assert not (tmp_path / "run").exists()
