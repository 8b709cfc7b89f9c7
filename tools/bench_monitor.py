"""What monitoring costs of a training step, on one worker: counting at every step, and a row every `log_every` steps.

    python tools/bench_monitor.py [--rounds 20] [--threads 2] [--markdown] [--json FILE]

Three models make real steps (forward, backward, clipping, AdamW) on random tokens: recipes/switch/tiny.yaml, and
4 layers of d_model 256, of which 2 MoE, with 8 and 32 experts. Between them the monitor's own work is timed: the
routers' entropy (computed to be watched only), the counts, and the row, reduced, encoded and written. `over_step` is
the monitor's share, monitor_ms / step_ms, for a row at every step and at every tenth.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measurement import Row, machine, peak_memory_gib, text_table, write_rows

from moe_cluster.output import run_main
from moe_train.callbacks.jsonl import encode_row
from moe_train.config.kinds.data import BPEConfig
from moe_train.config.load import load_recipe
from moe_train.config.resolve import spec_of
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, Recipe
from moe_train.data.batch import Batch
from moe_train.monitor.recent import bucket_steps
from moe_train.monitor.window import LoadWindow
from moe_train.parallel.axis import Axis
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.results import StepResult
from moe_train.step.training_step import TrainingStep

LOG_EVERY = (1, 10)


def main() -> None:
    """Measure and print; `--json` also writes the rows."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="The monitor's share of a training step."
    )
    parser.add_argument("--rounds", type=int, default=20, help="steps of every model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=32, help="of 128 tokens, in a batch")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, help='write {"rows": [...]} to this file')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows: list[Row] = []
    for name, recipe in recipes(options.sequences).items():
        rows += measure(name, recipe, options.rounds)
    shown = [{**row, "over_step": f"{row['over_step']:.2%}"} for row in rows]
    print(text_table(shown, markdown=options.markdown))
    print(f"{machine()}; {options.threads} threads; peak memory {peak_memory_gib():.1f} GiB")
    if options.json:
        write_rows(options.json, rows)


def recipes(sequences: int) -> dict[str, Recipe]:
    """The models, by name."""
    data = DataConfig(tokenizer=BPEConfig(vocab_size=4096), sequence_length=128, global_batch=sequences)
    model = ModelConfig(num_layers=4, d_model=256, num_heads=4)
    wide = {
        f"d256_e{experts}": Recipe(
            model=model, moe=MoEConfig(num_experts=experts, capacity_factor=None), data=data
        )
        for experts in (8, 32)
    }
    return {"switch_tiny": load_recipe("switch/tiny", [f"data.global_batch={sequences}"]), **wide}


def measure(name: str, recipe: Recipe, rounds: int) -> list[Row]:
    """A row for each of LOG_EVERY: medians over `rounds` steps, one more before them not counted."""
    world = World(rank=0, size=1, local_rank=0, attempt=1, device=torch.device("cpu"))
    mesh = Mesh(world)
    training_step = TrainingStep.build(recipe, mesh)
    spec = spec_of(recipe)
    window = LoadWindow(spec.num_experts, world.device, bucket_steps(recipe))
    probabilities = torch.rand(
        recipe.data.global_batch * recipe.data.sequence_length, recipe.moe.num_experts
    ).flatten()
    taken: dict[str, list[float]] = {"step": [], "entropy": [], "count": [], "row": []}
    with tempfile.TemporaryFile("wb", buffering=0) as file:
        for step in range(rounds + 1):
            result = _timed(
                taken["step"],
                lambda step=step: training_step.update([random_batch(recipe, step)], step, False),
            )
            for part, work in {
                "entropy": lambda: [-torch.dot(probabilities, probabilities) for _ in spec.moe],
                "count": lambda result=result: window.add(result.stats, result.step),
                "row": lambda result=result: file.write(encode_row(_row(window, mesh.data, result))),
            }.items():
                _timed(taken[part], work)
    ms = {part: 1000 * statistics.median(seconds[1:]) for part, seconds in taken.items()}
    return [_share(name, recipe, log_every, ms) for log_every in LOG_EVERY]


def _timed(into: list[float], work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = work()
    into.append(time.perf_counter() - began)
    return result


def _share(name: str, recipe: Recipe, log_every: int, ms: Mapping[str, float]) -> Row:
    monitor = ms["entropy"] + ms["count"] + ms["row"] / log_every
    return {
        "model": name,
        "num_experts": recipe.moe.num_experts,
        "log_every": log_every,
        "step_ms": ms["step"],
        "monitor_ms": monitor,
        "over_step": monitor / ms["step"],
    }


def random_batch(recipe: Recipe, step: int) -> Batch:
    """Random tokens, other ones at each step."""
    size, length = recipe.data.global_batch, recipe.data.sequence_length
    generator = torch.Generator().manual_seed(step)
    drawn = torch.randint(0, recipe.data.tokenizer.size, (size, length + 1), generator=generator)
    return Batch(
        drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous(), torch.arange(size * step, size * (step + 1))
    )


def _row(window: LoadWindow, data: Axis, result: StepResult) -> dict[str, Any]:
    summary = window.reduce(data, {"loss": result.loss, **result.losses})
    return {"step": result.step, **summary.scalars, "grad_norm": result.grad_norm, "moe": summary.as_row()}


if __name__ == "__main__":
    sys.exit(run_main(main))
