"""What goes wrong while a run is going on: disks, mounts, workers, terminals, networks; in processes of its own.

Each case is one message or a stated fallback, and what was saved before is good afterwards. Mounts are made in a
mount namespace of the test's own, so nothing of the machine changes.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require_tool
from own_processes import wait_for
from small_run import RECIPE, Ended, write_corpus

ROOT = Path(__file__).parents[2]
MOE_TRAIN = [sys.executable, "-m", "moe_train.cli"]
RUN = shlex.join([*MOE_TRAIN, "run", "small.yaml", "--run-dir", "disk/run"])
VERIFY = shlex.join([*MOE_TRAIN, "ckpt", "verify", "disk/run"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a recipe, its corpus and an empty folder to mount a disk on."""
    path = tmp_path_factory.mktemp("running")
    write_corpus(path / "corpus")
    (path / "small.yaml").write_text(RECIPE.format(corpus=path / "corpus"))
    (path / "disk").mkdir()
    return path


def start(folder: Path, command: list[str], **environment: str) -> "subprocess.Popen[str]":
    own = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cluster"))),
        "MOE_TRAIN_CACHE": str(folder / "cache"),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**inherited, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def finish(process: "subprocess.Popen[str]") -> Ended:
    output, errors = process.communicate(timeout=120)
    return Ended(process.returncode, output, errors)


def on_a_disk(folder: Path, mebibytes: int, script: str) -> Ended:
    """Run a shell script with a disk of so many MiB at `disk`, which only the script sees."""
    require_tool("unshare", "util-linux")
    mount = f"mount -t tmpfs -o size={mebibytes}m tmpfs disk"
    probe = subprocess.run(["unshare", "-m", "sh", "-c", mount], cwd=folder, capture_output=True, text=True)
    if probe.returncode != 0:
        reason = f"a disk cannot be mounted here ({probe.stderr.strip()})"
        if os.environ.get("MOE_TRAIN_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and MOE_TRAIN_REQUIRE_ALL=1 says that no test may be skipped")
        pytest.skip(reason)
    return finish(start(folder, ["unshare", "-m", "sh", "-ec", f"{mount}\n{script}"]))


@pytest.mark.parametrize(
    "asynchronous",
    ["true", pytest.param("false", marks=pytest.mark.faults)],
)
def test_a_disk_that_fills_while_saving_ends_the_run_and_loses_nothing(
    folder: Path, asynchronous: str
) -> None:
    longer = (
        f"{RUN} steps=60 checkpoint.every=1 checkpoint.keep_last=0 checkpoint.asynchronous={asynchronous}"
    )
    script = f"""
    if {longer}; then exit 99; fi
    {VERIFY} >&2
    mount -o remount,size=64m disk
    {longer} >&2
    {VERIFY} >&2
    """
    ended = on_a_disk(folder, 3, script)
    ended.refuses(
        "run/checkpoints/step_", "the disk is full (", "earlier checkpoints are intact: free space", code=0
    )
    assert "step 60/60" in ended.errors
    assert "from the start" in ended.output
    assert "attempt 2, from step" in ended.errors


@pytest.mark.parametrize(
    "free_kib", [12, *(pytest.param(n, marks=pytest.mark.faults) for n in (4, 20, 24, 28))]
)
def test_a_disk_that_is_full_when_a_run_starts_is_one_message(folder: Path, free_kib: int) -> None:
    ended = on_a_disk(folder, 1, f"head -c {1024 - free_kib}K /dev/zero > disk/filler\n{RUN}")
    ended.refuses("disk/run", "free space", code=1)
    assert "No space left on device" in ended.errors or "the disk is full" in ended.errors


def test_a_disk_that_became_read_only_is_named_and_loses_nothing(folder: Path) -> None:
    script = f"""
    {RUN}
    mount -o remount,ro disk
    if {RUN} steps=8; then exit 99; fi
    {VERIFY} >&2
    mount -o remount,rw disk
    {RUN} steps=8 >&2
    """
    ended = on_a_disk(folder, 16, script)
    ended.refuses("run_dir=disk/run: cannot be written (Read-only file system", "another --run-dir", code=0)
    assert "attempt 2, from step 6" in ended.errors


def test_a_worker_that_is_killed_is_named_and_what_was_saved_is_good(folder: Path) -> None:
    run_dir = folder / "killed"
    command = [
        *MOE_TRAIN,
        "run",
        "small.yaml",
        "--run-dir",
        str(run_dir),
        "--workers",
        "2",
        "parallel.expert=2",
    ]
    process = start(folder, [*command, "steps=100000"])
    heartbeat = run_dir / "attempts/1/rank-1/heartbeat.json"
    wait_for(lambda: any((run_dir / "checkpoints").glob("step_????????")) or process.poll() is not None)
    os.kill(json.loads(heartbeat.read_text())["pid"], signal.SIGKILL)
    finish(process).refuses("rank 1 on", "it was killed by SIGKILL", "see ", code=1)
    assert finish(start(folder, [*MOE_TRAIN, "ckpt", "verify", str(run_dir)])).code == 0


@pytest.mark.parametrize(
    "key", ["", pytest.param("a" * 40, marks=pytest.mark.faults)], ids=["no key", "no network"]
)
def test_wandb_without_a_key_or_a_network_falls_back_to_a_folder(
    folder: Path, tmp_path: Path, key: str
) -> None:
    command = [
        *MOE_TRAIN,
        "run",
        "small.yaml",
        "--run-dir",
        str(tmp_path / "run"),
        "monitor.wandb.mode=online",
    ]
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    ended = finish(start(folder, command, **nowhere, **({"WANDB_API_KEY": key} if key else {})))
    assert ended.code == 0, ended.errors
    assert ended.errors.count("monitor.wandb.mode=online is not possible (") == 1
    assert "is recorded offline in" in ended.errors
    assert "Traceback" not in ended.errors + ended.output
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
    assert "done; everything is in" in ended.output


def test_a_run_goes_on_when_its_reader_has_gone(folder: Path, tmp_path: Path) -> None:
    run = shlex.join([*MOE_TRAIN, "run", "small.yaml", "--run-dir", str(tmp_path / "run")])
    ended = finish(start(folder, ["bash", "-o", "pipefail", "-c", f"{run} | head -n 1"]))
    assert ended.code == 0, ended.errors
    assert len(ended.output.splitlines()) == 1
    assert "output is lost (its reader has gone); training continues" in ended.errors
    assert (tmp_path / "run/checkpoints/step_00000006").is_dir()


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.faults)])
def test_a_terminal_without_the_letters_of_a_name_shows_question_marks(
    folder: Path, tmp_path: Path, workers: str
) -> None:
    command = [
        *MOE_TRAIN,
        "run",
        "small.yaml",
        "--run-dir",
        str(tmp_path / "ü"),
        "--workers",
        workers,
        "name=größe",
    ]
    ended = finish(start(folder, command, LC_ALL="C", PYTHONIOENCODING="ascii", TERM="dumb"))
    assert ended.code == 0, ended.errors
    assert "gr??e: " in ended.output
    assert "step 6/6" in ended.output
    assert "\x1b" not in ended.output


@pytest.mark.faults
def test_an_interrupt_while_the_data_is_prepared_leaves_a_cache_that_serves(
    folder: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(folder / "corpus", corpus)
    (corpus / "long.txt").write_text("".join((folder / "corpus/0.txt").read_text()[i:] for i in range(3000)))
    command = [
        *MOE_TRAIN,
        "run",
        "small.yaml",
        f"data.corpus.path={corpus}",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    own = {"MOE_TRAIN_CACHE": str(tmp_path / "cache")}
    process = start(folder, command, **own)
    wait_for(lambda: any((tmp_path / "cache").rglob("*.building")) or process.poll() is not None)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    interrupted = finish(process)
    assert interrupted.code in (1, 75), interrupted.errors
    assert "Traceback" not in interrupted.errors
    assert not list((tmp_path / "cache").rglob("*.building"))
    assert finish(start(folder, command, **own)).code == 0
