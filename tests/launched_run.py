"""A real run of a small model in processes of its own, for tests that kill, stop or slow them down."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fresh_cache import fresh_cache
from own_processes import OwnProcesses

ROOT = Path(__file__).parents[1]
RECIPE = f"""\
name: small
steps: 48
log_every: 2
validate_every: 12
model: {{num_layers: 2, d_model: 32, num_heads: 2}}
moe: {{num_experts: 4}}
data:
  corpus: {{path: {Path(asyncio.__file__).parent}}}
  tokenizer: {{vocab_size: 300}}
  sequence_length: 32
  global_batch: 8
  validation_sequences: 8
checkpoint: {{every: 4, keep_last: 2}}
"""


class Run:
    """One run folder, and the `moe-train` commands on it."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.folder, self.run_dir, self.arguments = folder, folder / name, arguments
        self.processes = OwnProcesses()

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))
        extra = {"PYTHONPATH": path, "MOE_TRAIN_CACHE": str(fresh_cache(self.folder))}
        return subprocess.Popen(
            [sys.executable, "-m", "moe_train.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **extra, **self.processes.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self) -> "subprocess.Popen[str]":
        return self.command("run", "small.yaml", "--run-dir", str(self.run_dir), *self.arguments)

    def finish(self) -> None:
        process = self.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    def verify(self) -> None:
        process = self.command("ckpt", "verify", str(self.run_dir))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    @property
    def num_rows(self) -> int:
        metrics = self.run_dir / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def numbers(self) -> dict[tuple[int, str], Any]:
        """What the run computed at each step: of a step that was made twice, what was made last."""
        found: dict[tuple[int, str], Any] = {}
        for line in (self.run_dir / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            for key in ("loss", "losses", "grad_norm", "lr", "moe", "tokens_seen", "validation_loss"):
                if key in row:
                    found[row["step"], key] = row[key]
        return found
