"""Libraries are built once, by one process, and kept by what they were made of; without one the reference runs.

The compiler is a script that notes its calls: what is tested is who calls it, and what becomes of its answer.
"""

import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from moe_kernels import build, select
from moe_kernels.build import library_path
from moe_kernels.errors import KernelError
from moe_kernels.ops import balance

WORKS = 'sleep 0.2; while [ "$1" != -o ]; do shift; done; echo made > "$2"'
FAILS = "echo 'plan.cpp:3: note: here' >&2; echo 'plan.cpp:4: error: what is this' >&2; exit 1"


class Compiler:
    """Stands in for g++."""

    def __init__(self, folder: Path):
        self.path, self._calls = folder / "compiler", folder / "calls"

    def answer(self, how: str) -> None:
        """From now on it does this, whenever it is not asked for its version."""
        asked = '[ "$1" = --version ] && { echo 1.0; exit; }'
        self.path.write_text(f'#!/bin/sh\n{asked}\necho x >> "{self._calls}"\n{how}\n')
        self.path.chmod(0o755)

    @property
    def calls(self) -> int:
        """How often it has compiled."""
        return len(self._calls.read_text().split()) if self._calls.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """In use, with an empty cache and a copy of the sources."""
    made = Compiler(tmp_path)
    made.answer(WORKS)
    shutil.copytree(build.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
    monkeypatch.setenv("CXX", str(made.path))
    monkeypatch.setenv("MOE_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOE_KERNELS", raising=False)
    return made


def test_a_library_is_built_once_and_kept_by_what_it_was_made_of(compiler):
    first = library_path("cpu")
    assert library_path("cpu") == first
    assert compiler.calls == 1
    with open(build.SOURCES / "cpu" / "rows.h", "a") as header:
        header.write("// changed\n")
    assert library_path("cpu") != first
    assert compiler.calls == 2


def test_of_processes_that_come_at_once_one_builds(compiler):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.map(library_path, ["cpu"] * 3, chunksize=1)
    assert len(set(paths)) == 1
    assert compiler.calls == 1


def test_a_build_that_failed_leaves_nothing_and_is_tried_again(compiler):
    compiler.answer(FAILS)
    with pytest.raises(KernelError, match=r"compiler failed: plan\.cpp:4: error: what is this"):
        library_path("cpu")
    assert [path.suffix for path in build.cache_folder().iterdir()] == [".lock"]
    compiler.answer(WORKS)
    assert library_path("cpu").read_text() == "made\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-compiler", "because no-such-compiler was not found; install it to build these kernels"),
        ("broken", "because broken --version returned 1; install a working compiler"),
        (None, "compiler failed: plan.cpp:4: error: what is this"),
    ],
    ids=["none", "broken", "refuses"],
)
def test_without_a_library_the_reference_runs_and_one_line_says_why(
    command, reason, compiler, monkeypatch, caplog
):
    compiler.answer(FAILS)
    broken = compiler.path.with_name("broken")
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    if command:
        monkeypatch.setenv("CXX", str(broken) if command == "broken" else command)
    select.choose.cache_clear()
    with caplog.at_level(logging.INFO, "moe_kernels.select"):
        for _ in range(2):
            updated = balance.update_bias(torch.zeros(2), torch.tensor([3, 1]), 0.5)
    select.choose.cache_clear()
    assert updated.tolist() == [-0.5, 0.5]
    [line] = [record.getMessage() for record in caplog.records if record.name == "moe_kernels.select"]
    assert line.startswith("kernels on cpu: reference, because ")
    assert line.endswith(reason)
    assert "\n" not in line


def test_a_cache_that_cannot_be_written_is_a_reason_as_well(compiler, monkeypatch):
    monkeypatch.setenv("MOE_TRAIN_CACHE", os.devnull)
    choice = select.choose.__wrapped__("cpu")
    assert choice.kind == "reference"
    assert "Not a directory" in choice.reason


def test_the_environment_overrules_the_choice(compiler, monkeypatch):
    monkeypatch.setenv("MOE_KERNELS", "reference")
    assert select.choose.__wrapped__("cpu").reason == "set by MOE_KERNELS"
    assert compiler.calls == 0
    monkeypatch.setenv("MOE_KERNELS", "fastest")
    with pytest.raises(
        KernelError, match="MOE_KERNELS=fastest: must be one of reference, cpu, emulated, cuda"
    ):
        select.choose.__wrapped__("cpu")
