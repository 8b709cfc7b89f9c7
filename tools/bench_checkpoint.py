"""How long a checkpoint stops training: a synchronous save against the call that starts an asynchronous one.

    python tools/bench_checkpoint.py [--mib 256] [--rounds 7] [--folder DIR] [--json FILE]

One rank, float32, a third parameters and two thirds AdamW's moments, in experts and dense matrices. Rounds
alternate between the two. The first of each is not in the medians; the first asynchronous one, which has to
allocate its host buffers, is shown on its own.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from measurement import interleave, machine, median_ratio, peak_memory_gib, text_table, write_rows

from moe_cluster.output import run_main
from moe_train.checkpoint.checkpointer import Checkpointer
from moe_train.checkpoint.layout import Shard, ShardedState, alone
from moe_train.checkpoint.lineage import record_start
from moe_train.config.schema import CheckpointConfig
from moe_train.parallel.world import World

NUM_EXPERTS, D_MODEL = 8, 256


def make_state(mib: int) -> ShardedState:
    """About `mib` MiB of float32: experts [8, 256, 1024] and dense [1024, 2048], each with two moments."""
    state = {}
    for index in range(max(1, mib // 48)):
        for part in ("", ".exp_avg", ".exp_avg_sq"):
            experts = torch.randn(NUM_EXPERTS, D_MODEL, 4 * D_MODEL)
            dense = torch.randn(4 * D_MODEL, 8 * D_MODEL)
            state[f"layers.{index}.experts{part}"] = Shard(experts, (*experts.shape,), (0, 0, 0), True)
            state[f"layers.{index}.dense{part}"] = Shard(dense, tuple(dense.shape), (0, 0))
    return alone(state)


def measure(mib: int, rounds: int, folder: Path) -> dict[str, float]:
    """One row: seconds are medians."""
    state, world = make_state(mib), World(0, 1, 0, 1, torch.device("cpu"))
    savers = {}
    for name in ("synchronous", "asynchronous"):
        record_start(folder / name, 1, None)
        config = CheckpointConfig(asynchronous=name == "asynchronous", keep_last=1)
        savers[name] = Checkpointer(folder / name, config, world)
    steps = dict.fromkeys(savers, 0)
    first_blocked: list[float] = []

    def save(name: str) -> float:
        steps[name] += 1
        start = time.perf_counter()
        savers[name].save(steps[name], state, {})
        seconds = time.perf_counter() - start
        savers[name].wait()
        if name == "asynchronous":
            first_blocked.append(seconds)
        return seconds

    seconds = interleave({name: lambda name=name: save(name) for name in savers}, budget_s=0.0, least=rounds)
    return {
        "state_mib": sum(shard.data.nbytes for shard in state.values()) / 2**20,
        "synchronous_seconds": statistics.median(seconds["synchronous"]),
        "blocked_seconds": statistics.median(seconds["asynchronous"]),
        "first_blocked_seconds": first_blocked[0],
        "over_synchronous": median_ratio(seconds["asynchronous"], seconds["synchronous"]),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=256, help="size of the state")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", type=Path, help='write {"rows": [...]} here')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [measure(arguments.mib, arguments.rounds, Path(folder))]
    print(text_table(rows, markdown=False))
    print(f"{machine()}; peak memory {peak_memory_gib():.2f} GiB")
    if arguments.json:
        write_rows(arguments.json, rows)


if __name__ == "__main__":
    sys.exit(run_main(main))
