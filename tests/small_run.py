"""A run small enough to be made dozens of times, and how a `moe-train` command on it ended.

The fixtures are a plugin that tests/conftest.py loads; tests/unit/cli and tests/faults treat the run badly.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fresh_cache import fresh_cache

from moe_train import cli
from moe_train.run_folder import OWNER_FILE, RECIPE_FILE

RECIPE = """\
name: small
steps: 6
log_every: 2
validate_every: 0
model: {{num_layers: 2, d_model: 16, num_heads: 2}}
moe: {{every: 2, num_experts: 4}}
data:
  corpus: {{path: {corpus}}}
  tokenizer: {{vocab_size: 300}}
  sequence_length: 16
  global_batch: 8
  validation_sequences: 8
optim: {{schedule: {{kind: constant}}}}
checkpoint: {{every: 2}}
job: {{threads: 1}}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it told."""

    code: int
    output: str
    errors: str

    def refuses(self, *parts: str, code: int = 2) -> None:
        """It ended with `code` and one message that holds `parts`, without a traceback."""
        assert self.code == code, self.errors
        assert self.errors.count("error: ") == 1, self.errors
        assert "Traceback" not in self.errors + self.output
        for part in parts:
            assert part in self.errors


Command = Callable[..., Ended]
"""Called with the words after `moe-train`."""


def write_corpus(folder: Path) -> None:
    """Write six text files of words made up by a fixed draw."""
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(60)]
    for number in range(6):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(words, k=600)))


OUR_NAMES = ("moe_cluster.py", "moe_train/__init__.py")


def lay_traps(folder: Path, names: tuple[str, ...] = ("queue.py", "torch.py", *OUR_NAMES)) -> None:
    """Write modules into a working directory that no process of ours may import from there."""
    (folder / "moe_train").mkdir()
    for name in names:
        (folder / name).write_text("raise SystemExit('a module of the working directory was imported')\n")


def environment(folder: Path) -> dict[str, str]:
    """What a run in this process reads, and what it sets and must not leave behind."""
    return {"MOE_TRAIN_CACHE": str(fresh_cache(folder)), "OMP_NUM_THREADS": "1", "MOE_TRAIN_ATTEMPT": "1"}


def train_alone(folder: Path, run_dir: Path, *overrides: str) -> None:
    """Train the small recipe to its end, for fixtures that outlive one test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        assert cli.main(["run", str(folder / "small.yaml"), "--run-dir", str(run_dir), *overrides]) == 0


def last_validation(run_dir: Path) -> float:
    """The last validation loss on record."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["validation_loss"] for row in rows if "validation_loss" in row][-1]


def contents(path: Path) -> dict[str, str]:
    """Every file below `path` by the hash of its content, but for the name of who held the folder last."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != OWNER_FILE
    }


def tree(path: Path) -> dict[str, str]:
    """All that is below `path`, empty folders and links too: folder, where a link leads, or the hash of a content."""
    return {
        str(each.relative_to(path)): f"-> {os.readlink(each)}"
        if each.is_symlink()
        else "folder"
        if each.is_dir()
        else hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(path.rglob("*"))
        if each.name != OWNER_FILE or not each.with_name(RECIPE_FILE).exists()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a recipe, its corpus, and corpora that cannot be used."""
    path = tmp_path_factory.mktemp("bad_input")
    write_corpus(path / "corpus")
    for name in ("bytes", "alone", "nothing"):
        (path / name).mkdir()
    (path / "bytes/a.txt").write_bytes(b"\xff\xfe\x80" * 50)
    (path / "alone/a.txt").write_text("hello " * 500)
    (path / "small.yaml").write_text(RECIPE.format(corpus=path / "corpus"))
    (path / "binary.yaml").write_bytes(b"\x93NUMPY\x01\x00\xff" * 20)
    (path / "list.yaml").write_text("- a\n- b\n")
    (path / "folder.yaml").mkdir()
    return path


@pytest.fixture
def moe_train(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs one command in the working directory."""
    monkeypatch.chdir(folder)
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    handlers = list(logging.getLogger("ray").handlers)
    yield run
    logging.getLogger("ray").handlers = handlers  # Ray's own would write to this test's stderr in later tests


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 2, 4 and 6; tests work on copies."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train_alone(folder, run_dir)
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may harm."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The validation loss at step 8 of a run that was never harmed."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    train_alone(folder, run_dir, "steps=8")
    return last_validation(run_dir)
