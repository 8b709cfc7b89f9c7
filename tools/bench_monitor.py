"""What monitoring costs: counting one step's statistics, and making one row, as milliseconds of one worker.

    python tools/bench_monitor.py [--layers 12] [--experts 64] [--json FILE]

Compare with the time of a step of the model in question: counting happens every step, a row every `log_every`
steps.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from moe_train.callbacks.jsonl import encode_row
from moe_train.monitor.load import LoadWindow
from moe_train.parallel.world import World
from moe_train.results import MoEStats


def main() -> None:
    """Measure and print; `--json` also writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.layers, arguments.experts, arguments.repeats)
    for row in rows:
        print(f"{row['part']:<6} {row['milliseconds']:.3f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def measure(num_layers: int, num_experts: int, repeats: int) -> list[dict[str, str | int | float]]:
    """Median milliseconds of each part, on the CPU with one thread and one worker."""
    world = World(rank=0, size=1, local_rank=0, attempt=1, device=torch.device("cpu"))
    window = LoadWindow(num_layers, num_experts, world.device)
    layer = MoEStats(torch.randint(0, 999, (num_experts,)), torch.tensor(5), torch.tensor(99.0), {}, {})
    stats = ((layer,) * num_layers,)
    scalars = {"loss": torch.tensor(1.0), "balance": torch.tensor(1.0)}

    def count() -> None:
        window.add(stats, tokens=4096)

    def make_row() -> None:
        encode_row({"step": 1, "moe": window.reduce(world, scalars).as_row()})

    parts: dict[str, Callable[[], None]] = {"step": count, "row": make_row}
    milliseconds = {part: [] for part in parts}
    for _ in range(repeats):
        for part, run in parts.items():
            began = time.perf_counter()
            run()
            milliseconds[part].append(1000 * (time.perf_counter() - began))
    return [
        {"part": part, "layers": num_layers, "experts": num_experts, "milliseconds": statistics.median(taken)}
        for part, taken in milliseconds.items()
    ]


if __name__ == "__main__":
    main()
