"""What a disk and a kill can do to checkpoints: every harm is found, nothing good is lost."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_states import emptied, equal, state
from threaded_ranks import one_rank, run_ranks

from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.layout import Shard, ShardedState
from moe_train.checkpoint.lineage import record_start
from moe_train.checkpoint.verify import verify
from moe_train.config.schema import CheckpointConfig
from moe_train.errors import CheckpointError

SYNCHRONOUS = CheckpointConfig(asynchronous=False, keep_last=0)
TESTS = Path(__file__).resolve().parents[1]


def saved_run(run_dir: Path) -> Path:
    """Steps 1 and 2 of two ranks, with different values; the folder of step 2."""
    record_start(run_dir, 1, None)

    def rank_main(world):
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, world)
        for step in (1, 2):
            checkpointer.save(step, state(world.rank, 2, 2, seed=step), {})

    run_ranks(2, rank_main)
    return run_dir / "checkpoints" / "step_00000002"


def harm(checkpoint: Path, draw: random.Random) -> str:
    """Do one random harm to a checkpoint folder; says which."""
    path = draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "flip", "flip", "truncate", "zero tail", "swap in", "swap over", "remove"])
    older = checkpoint.with_name("step_00000001")
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "truncate":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "zero tail":
        start = draw.randrange(len(content) - 8)
        path.write_bytes(content[:start] + b"\1" * (len(content) - start))
    elif kind == "swap in":
        shutil.copy(older / path.name, path)
    elif kind == "swap over":
        first, second = checkpoint / "rank-00000.safetensors", checkpoint / "rank-00001.safetensors"
        first.rename(path := checkpoint / "exchange")
        second.rename(first)
        path.rename(second)
    else:
        path.unlink()
    return f"{kind} {path.name}"


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.faults, id="representative")])
def test_every_random_harm_is_found_and_none_is_loaded(tmp_path, count):
    checkpoint = saved_run(tmp_path / "run")
    shutil.copytree(checkpoint, tmp_path / "good")
    draw = random.Random(2026)
    reader = Checkpointer(tmp_path / "run", SYNCHRONOUS, one_rank(attempt=2))
    for number in range(count):
        done = harm(checkpoint, draw)
        assert verify(checkpoint), f"harm {number}, {done}, was not found"
        found = reader.choose("latest")
        assert found.step == 1, f"harm {number}, {done}: step {found.step} was chosen"
        with pytest.raises(CheckpointError):
            reader.choose(2)
        shutil.rmtree(checkpoint)
        shutil.copytree(tmp_path / "good", checkpoint)
    target = emptied(state(0, 1, 1))
    reader.load(reader.choose("latest"), target)
    assert equal(target, state(0, 1, 1, seed=2))


ATTEMPT = """
import sys
from pathlib import Path
import torch
from checkpoint_states import emptied
from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.layout import Shard, alone
from moe_train.checkpoint.lineage import record_start
from moe_train.config.schema import CheckpointConfig
from threaded_ranks import one_rank

run_dir, attempt = Path(sys.argv[1]), int(sys.argv[2])
checkpointer = Checkpointer(run_dir, CheckpointConfig(keep_last=2), one_rank(attempt))
shards = {f"w{i}": Shard(torch.zeros(64, 1024), (64, 1024), (0, 0), is_expert=True) for i in range(8)}
state = alone(shards)
found = checkpointer.choose("latest")
step = checkpointer.load(found, state)["step"] if found else 0
record_start(run_dir, attempt, found.origin if found else None)
print("ready", step, flush=True)
while True:
    step += 1
    for shard in shards.values():
        assert (shard.data == step - 1).all(), "a resumed state is not that of its step"
        shard.data.add_(1)
    checkpointer.save(step, state, {})
    for committed in checkpointer.poll():
        print("committed", committed, flush=True)
"""


def killed_attempt(run_dir: Path, attempt: int, seconds: float) -> tuple[int, int]:
    """Save without pause, then SIGKILL; the step it resumed from and the last commit it told of."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", ATTEMPT, str(run_dir), str(attempt)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    with process:
        first = process.stdout.readline().split()
        assert first[:1] == ["ready"], "the attempt did not start"
        time.sleep(seconds)
        process.kill()
        rest = process.stdout.read().split()
    assert process.returncode == -9, "the attempt ended before it was killed"
    return int(first[1]), max([int(word) for word in rest if word.isdigit()], default=int(first[1]))


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.faults)])
def test_a_kill_at_any_moment_leaves_only_good_checkpoints(tmp_path, kills):
    draw, known = random.Random(kills), 0
    for attempt in range(1, kills + 1):
        resumed, last = killed_attempt(tmp_path, attempt, draw.uniform(0.0, 0.4))
        assert resumed >= known, f"attempt {attempt} resumed from {resumed}, though {known} was committed"
        known = last
        committed = [path for path in (tmp_path / "checkpoints").glob("step_????????") if path.is_dir()]
        findings = [finding for path in committed for finding in verify(path)]
        assert findings == []
    assert known > 0


@contextlib.contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at `path`; skips the test where none can be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def large_state(rank: int, size: int) -> ShardedState:
    rows = 256 // size  # 256 x 1024 floats: 1 MiB over all ranks
    return {"w": [Shard(torch.full((rows, 1024), 1.0), (256, 1024), (rank * rows, 0))]}


@pytest.mark.parametrize("size", [1, 2])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, size):
    with small_disk(tmp_path / "disk", 3) as run_dir:
        record_start(run_dir, 1, None)

        def rank_main(world):
            checkpointer = Checkpointer(run_dir, CheckpointConfig(keep_last=0), world, timeout_s=20)
            checkpointer.save(1, large_state(world.rank, size), {})
            checkpointer.save(2, large_state(world.rank, size), {})
            checkpointer.wait()
            checkpointer.save(3, large_state(world.rank, size), {})
            checkpointer.wait()

        for result in run_ranks(size, rank_main):
            assert isinstance(result, CheckpointError), result
            assert "step_00000003.tmp-1" in str(result)
            assert "the disk is full (" in str(result)
            assert "free space, or lower checkpoint.keep_last" in str(result)
        folder = run_dir / "checkpoints"
        assert [path.name for path in folder.iterdir() if ".tmp" in path.name] == []
        assert verify(folder / "step_00000001") == verify(folder / "step_00000002") == []


def test_a_read_only_folder_is_named(tmp_path):
    with small_disk(tmp_path / "disk", 3) as run_dir:
        record_start(run_dir, 1, None)
        checkpointer = Checkpointer(run_dir, SYNCHRONOUS, one_rank())
        checkpointer.save(1, large_state(0, 1), {})
        subprocess.run(["mount", "-o", "remount,ro", str(run_dir)], check=True)
        with pytest.raises(
            CheckpointError, match=r"step_00000002.tmp-1: is not writable \(Read-only file system\)"
        ):
            checkpointer.save(2, large_state(0, 1), {})
        with pytest.raises(CheckpointError, match="--run-dir"):
            record_start(run_dir, 2, None)
        assert checkpointer.choose("latest").step == 1
