"""Commands whose output is closed, full, unread, or in an encoding without the letters: what ends, and what goes on."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import environment

ROOT = Path(__file__).parents[3]
MOE_TRAIN = shlex.join([sys.executable, "-m", "moe_train.cli"])
FULL = "moe-train: error: standard output: cannot be written (No space left on device); "
RESULTS = [
    "--help",
    "run --help",
    "show small.yaml",
    "show small.yaml --json",
    "run small.yaml --dry-run",
    "submit small.yaml --cluster local --dry-run",
    "data info small.yaml",
    "status {run}",
    "status {run} --json",
    "list {parent}",
    "ckpt ls {run}",
    "ckpt verify {run}",
    "monitor {run}",
]


def shell(folder: Path, line: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which `moe-train` stands for the command."""
    path = os.pathsep.join(str(ROOT / part) for part in ("", "cluster", "kernels"))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("moe-train", MOE_TRAIN, 1)],
        cwd=folder,
        env={**os.environ, **environment(folder), "PYTHONPATH": path, **variables},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
    )


@pytest.mark.parametrize(
    ("end", "workers"),
    [
        (">&- 2>&- <&-", "1"),
        (">/dev/full 2>/dev/full", "1"),
        ("2>&1 | head -n 1 >/dev/null", "1"),
        (">/dev/full 2>/dev/full", "2"),
        pytest.param(">&-", "1", marks=pytest.mark.faults),
        pytest.param(">&- 2>&- <&-", "2", marks=pytest.mark.faults),
        pytest.param(">&-", "2", marks=pytest.mark.faults),
        pytest.param("2>/dev/full", "2", marks=pytest.mark.faults),
        pytest.param("2>&1 | head -n 1 >/dev/null", "2", marks=pytest.mark.faults),
    ],
)
def test_a_run_trains_whatever_becomes_of_its_output(
    folder: Path, tmp_path: Path, end: str, workers: str
) -> None:
    done = shell(folder, f"moe-train run small.yaml --run-dir {tmp_path / 'run'} --workers {workers} {end}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in row for row in rows) == 3
    assert all(row.startswith("{") and row.endswith("}") for row in rows)
    log = (tmp_path / "run/attempts/1/rank-0/log.txt").read_text()
    assert "rank 0 of attempt 1 is process" in log
    if "head" in end or end == ">/dev/full 2>/dev/full":
        assert "output is lost (" in log
        assert log.count("output is lost (") == 1


def test_no_file_of_a_run_takes_the_place_of_a_closed_output(folder: Path, tmp_path: Path) -> None:
    """Native code and other programs print to descriptors 1 and 2, whatever has been opened there."""
    code = (
        "import os, subprocess, sys; from moe_cluster.output import protect_output; protect_output(is_result=False)\n"
        f"file = open({str(tmp_path / 'file')!r}, 'wb', buffering=0)\n"
        "os.write(1, b'native'); subprocess.run(['sh', '-c', 'echo child; echo child >&2']); print('python')\n"
        "file.write(b'own')"
    )
    done = shell(folder, f"{shlex.join([sys.executable, '-c', code])} <&- >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"own"


@pytest.mark.parametrize("command", RESULTS)
def test_a_result_that_cannot_be_written_is_one_message(folder: Path, finished: Path, command: str) -> None:
    words = command.format(run=finished, parent=finished.parent)
    done = shell(folder, f"moe-train {words} >/dev/full")
    assert done.returncode == 1, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert message == f"{FULL}free space, or redirect it elsewhere"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", RESULTS)
def test_a_reader_that_goes_leaves_no_traceback(folder: Path, finished: Path, command: str) -> None:
    words = command.format(run=finished, parent=finished.parent)
    done = shell(folder, f"moe-train {words} | true")
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("end", [">/dev/full", ">/dev/full 2>/dev/full", ">&- 2>&-", "| true"])
def test_an_error_keeps_its_exit_code_whatever_becomes_of_its_message(folder: Path, end: str) -> None:
    done = shell(folder, f"moe-train show nowhere.yaml {end}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        pytest.param({"PYTHONIOENCODING": "latin-1:strict"}, marks=pytest.mark.faults),
        pytest.param({"LC_ALL": "POSIX"}, marks=pytest.mark.faults),
    ],
)
def test_an_encoding_without_the_letters_is_no_hindrance(folder: Path, tmp_path: Path, variables) -> None:
    names = tmp_path / "Größe → ∞"
    shutil.copytree(folder / "corpus", names / "corpus")
    (names / "corpus/Größe → ∞.txt").touch()
    recipe = names / "recipe.yaml"
    recipe.write_text(
        (folder / "small.yaml").read_text(encoding="utf-8").replace("name: small", "name: Größe → ∞"),
        encoding="utf-8",
    )
    path = os.path.relpath(names, folder)
    overrides = ["data.corpus.path=corpus", "steps=2"]
    program = [sys.executable, "-m", "moe_train.cli", "run", "recipe.yaml", "--run-dir", "run", *overrides]
    done = shell(folder, f"cd {shlex.quote(path)} && {shlex.join(program)}", **variables)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Größe → ∞" in (names / "run/recipe.yaml").read_text(encoding="utf-8")
    log = (names / "run/attempts/1/rank-0/log.txt").read_text(encoding="utf-8")
    assert "files without text (1; the first is corpus/Gr" in log
    for command in ("status run", "monitor run --html page.html", "list ."):
        done = shell(names, f"moe-train {command}", **variables)
        assert done.returncode == 0, done.stderr
