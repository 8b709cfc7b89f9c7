"""Whatever is refused leaves the disk as it was: no folder, no lock, no attempt, no run that `list` would show."""

import json
from pathlib import Path

import pytest
from small_run import Command, tree

NOBODY = "http://127.0.0.1:9"  # the discard port, where nothing listens
NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")

# The words after `moe-train`, and a part of the message.
REFUSED = [
    (["run", "small.yaml", "--resume", "7"], "has no run to resume"),
    (["run", "small.yaml", "data.tokenizer.vocab_size=100"], "vocab_size=100"),
    (["run", "small.yaml", "data.tokenizer.vocab_size=5000"], "vocab_size=5000"),
    (["run", "small.yaml", "data.global_batch=10000"], "global_batch=10000"),
    (["run", "small.yaml", "data.sequence_length=1000000"], "sequence_length=1000000"),
    (["run", "small.yaml", "data.corpus.path=nothing"], "holds no text"),
    (["run", "small.yaml", "data.corpus.path=gone"], "gone"),
    (["run", "small.yaml", "data.corpus.path=alone"], "cannot be split"),
    pytest.param(["run", "small.yaml", "job.device=cuda"], "job.device=cuda", marks=NO_GPU),
    (["run", "small.yaml", "--launcher", "slurm"], "--launcher slurm"),
    (["run", "small.yaml", "--launcher", "nope"], "--launcher nope"),
    (["run", "small.yaml", "--workers", "2", "parallel.expert=3"], "parallel.expert=3"),
    (["run", "small.yaml", "moe.num_experts=0"], "moe.num_experts=0"),
    (["run", "small.yaml", "--max-restarts", "2", "data.corpus.path=gone"], "gone"),
    (["submit", "small.yaml", "--cluster", "slurm"], "sbatch"),
    (["submit", "small.yaml", "--cluster", "ray", "--address", NOBODY], NOBODY),
    (["submit", "small.yaml", "--cluster", "ray"], "address"),
    (["submit", "small.yaml", "--resume", "7"], "has no run to resume"),
    (["submit", "small.yaml", "data.corpus.path=gone"], "gone"),
    (["submit", "small.yaml", "--nodes", "2"], "--nodes 2"),
    (["submit", "small.yaml", "moe.num_experts=0"], "moe.num_experts=0"),
    (["sweep", "small.yaml", "seed=0,1", "--cluster", "slurm"], "sbatch"),
    (["sweep", "small.yaml", "seed=0,1", "--cluster", "ray", "--address", NOBODY], NOBODY),
    (["sweep", "small.yaml", "moe.num_experts=0,4"], "moe.num_experts=0"),
    (["sweep", "small.yaml", "seed=0"], "no key has several values"),
    (["resume", "small"], "RUN=small"),
    (["fork", "small", "runs/new"], "RUN=small"),
    (["status", "small"], "RUN=small"),
    (["monitor", "small", "--html", "runs/page.html"], "RUN=small"),
    (["translate", "small"], "RUN=small"),
    (["ckpt", "ls", "small"], "small"),
]


@pytest.fixture
def no_programs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Slurm, and without settings of its user's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("SLURM_JOB_ID", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def runs(moe_train: Command, folder: Path) -> list[str]:
    """The runs that `list` shows."""
    ended = moe_train("list", str(folder), "--json")
    return [row["run_dir"] for row in json.loads(ended.output)]


def below(folder: Path) -> dict[str, str]:
    """The tree without the cache, whose entries are no run's."""
    return {name: what for name, what in tree(folder).items() if not name.startswith("cache")}


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize(("words", "part"), REFUSED)
def test_a_refusal_leaves_the_disk_as_it_was(
    moe_train: Command, folder: Path, words: list[str], part: str
) -> None:
    before = below(folder)
    ended = moe_train(*words)
    assert ended.code in (1, 2)
    assert part in ended.errors
    assert "Traceback" not in ended.errors
    assert below(folder) == before
    assert runs(moe_train, folder) == []
