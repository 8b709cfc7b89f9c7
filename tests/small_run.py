"""A run small enough to be made dozens of times, and how a `moe-train` command on it ended.

The fixtures of tests/unit/cli/conftest.py make the run; the tests of bad input there and in tests/faults harm it.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe_train import cli

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


def environment(folder: Path) -> dict[str, str]:
    """What a run in this process reads, and what it sets and must not leave behind."""
    return {"MOE_TRAIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "MOE_TRAIN_ATTEMPT": "1"}


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
    """Every file below `path` by the hash of its content."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
