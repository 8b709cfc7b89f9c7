"""Tokens per second of our two engines against DeepSpeed-MoE and megatron-core, and where the time of a step goes.

    python tools/bench_parallel.py [--systems NAME ...] [--rounds 10] [--settle 8] [--markdown] [--json FILE]

One run: all systems train the same model from the same weights in the same two processes, one thread each, and make
their updates in turn, so what else the machine does hits all alike. Experts are shared out over both processes.
native, deepspeed    our engines; deepspeed at ZeRO stage 1
deepspeed_moe        our transformer with DeepSpeed's MoE layers under DeepSpeed's engine at stage 1; no token dropped
deepspeed_capacity   the same with capacity factor 1.25, beyond which tokens are dropped
megatron             megatron-core's GPT-MoE under its own data parallelism, with the clip of bench_step.py. It runs on
                     CPU tensors behind tests/distributed/megatron_facade.py, which replaces names of torch.cuda
native_recompute_... the native engine with engine.recompute
native_all_to_all    the native engine with gloo's exchange of rows; native has one_sided
native_overlap       the same with engine.overlap=halves
one_process          the native engine on one process, the other one idle, with as many tokens for this process
two_apart            the same on both processes at once, that share nothing: what the machine leaves of one_process
`over_native` and `cpu_over_native` are medians over rounds of wall and CPU time over that of `native`; `spread` is that
of the wall time, its interquartile range over its median. `first_s` are the seconds of the very first update, `loss` is
that of the last: systems that compute the same have the same. The second table splits updates of their own
(tools/split.py), the third says what recomputation saves.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from measurement import Row, interleave, machine, median_ratio, peak_memory_gib, text_table, write_rows
from workers import Workers

from moe_cluster.output import run_main
from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.kinds.dispatch import AllToAllDispatchConfig, AutoDispatchConfig, DispatchConfig
from moe_train.config.kinds.engine import EngineConfig, NativeEngineConfig

WORKERS = 2
SEQUENCE_LENGTH = 128
TESTS = Path(__file__).resolve().parents[1] / "tests"


@dataclass
class Ours:
    """What sets one of our systems apart."""

    engine: EngineConfig
    dispatch: DispatchConfig = field(default_factory=AutoDispatchConfig)


OURS: Mapping[str, Ours] = {
    "native": Ours(NativeEngineConfig()),
    "deepspeed": Ours(DeepSpeedEngineConfig(stage=1)),
    "native_recompute_experts": Ours(NativeEngineConfig(recompute="experts")),
    "native_recompute_attention": Ours(NativeEngineConfig(recompute="attention")),
    "native_recompute_block": Ours(NativeEngineConfig(recompute="block")),
    "native_all_to_all": Ours(NativeEngineConfig(), AllToAllDispatchConfig()),
    "native_overlap": Ours(NativeEngineConfig(overlap="halves"), AllToAllDispatchConfig()),
}
OTHERS = ("deepspeed_moe", "deepspeed_capacity", "megatron")
APART = ("one_process", "two_apart")
SYSTEMS = (*OURS, *OTHERS, *APART)
MIB = 2**20


SIZES = {"layers": 4, "d-model": 256, "experts": 8, "sequences": 16}
Seconds = Mapping[str, list[float]]
"""Of each round, by system."""


def main() -> None:
    """Start the workers, measure all systems in turn and print the tables."""
    options = _options()
    sizes = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in SIZES]
    script = str(Path(__file__).with_name("parallel_worker.py"))
    arguments = [*sizes, "--systems", *options.systems]
    workers = Workers(script, arguments, WORKERS, [TESTS, TESTS / "distributed"])
    try:
        tables = _measured(workers, options)
    finally:
        workers.stop()
    for table in filter(None, tables):
        print(text_table(table, markdown=options.markdown), end="\n\n")
    print(f"{machine()}; {WORKERS} processes of 1 thread; peak memory of one {peak_memory_gib():.1f} GiB")
    print(
        "megatron runs behind a facade that replaces names of torch.cuda (tests/distributed/megatron_facade.py)"
    )
    if options.json:
        write_rows(options.json, [row for table in tables for row in table])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="beside native; all")
    parser.add_argument("--rounds", type=int, default=10, help="updates of every system")
    settle_help = "updates of every system before the first round"
    parser.add_argument("--settle", type=int, default=8, help=settle_help)
    for name, default in SIZES.items():
        note = f"of {SEQUENCE_LENGTH} tokens, in the batch of a process" if name == "sequences" else None
        parser.add_argument(f"--{name}", type=int, default=default, help=note)
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", type=Path, help='write {"rows": [...]} to this file')
    options = parser.parse_args()
    options.systems = [name for name in SYSTEMS if name == "native" or name in options.systems]
    return options


def _measured(workers: Workers, options: argparse.Namespace) -> list[list[Row]]:
    """Returns the tables."""
    systems = {name: Measured(workers, name) for name in options.systems}
    for _ in range(options.settle):
        for system in systems.values():
            system.update()
    for system in systems.values():
        system.cpu.clear()
    updates = {name: system.update for name, system in systems.items()}
    wall = interleave(updates, budget_s=0.0, least=options.rounds)
    cpu = {name: system.cpu[1:] for name, system in systems.items()}  # the first round warms up
    tokens = options.sequences * SEQUENCE_LENGTH
    speeds: list[Row] = [
        {
            "system": name,
            "tokens_per_second": round(tokens * _processes(name) / statistics.median(wall[name])),
            "over_native": median_ratio(wall[name], wall["native"]),
            "cpu_over_native": median_ratio(cpu[name], cpu["native"]),
            "cpu_ms": 1e3 * statistics.median(cpu[name]),
            "spread": _spread(wall[name]),
            "first_s": system.first,
            "loss": system.loss,
        }
        for name, system in systems.items()
    ]
    splits = [_split(workers, name, options.rounds) for name in systems if name not in APART]
    return [speeds, splits, _recomputed(workers, wall, cpu), _goals(wall, cpu)]


class Measured:
    """A system in the workers."""

    def __init__(self, workers: Workers, name: str):
        self.workers, self.name = workers, name
        self.cpu: list[float] = []
        """CPU seconds of each update, of all workers."""
        self.loss = 0.0
        self.first: float | None = None
        """Wall seconds of the first update of all."""

    def update(self) -> float:
        """Returns the wall seconds of an update, as the slowest worker saw it."""
        answers = self.workers.ask(f"update {self.name}")
        self.cpu.append(sum(answer["cpu"] for answer in answers))
        self.loss = statistics.mean(answer["loss"] for answer in answers if answer["loss"] is not None)
        wall: float = max(answer["wall"] for answer in answers)
        self.first = self.first or wall
        return wall


def _processes(name: str) -> int:
    """Returns how many processes work on an update."""
    return 1 if name == "one_process" else WORKERS


def _spread(seconds: list[float]) -> float:
    if len(seconds) == 1:
        return 0.0
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / median


def _split(workers: Workers, name: str, rounds: int) -> Row:
    """Returns the milliseconds of each part, means over the workers, medians over steps."""
    steps = [workers.ask(f"split {name}") for _ in range(max(1, rounds // 2))]
    row: dict[str, str | float] = {"system": name}
    for part in steps[0][0]:
        means = [statistics.mean(worker[part] for worker in step) for step in steps]
        row[f"{part}_ms"] = 1e3 * statistics.median(means)
    return row


def _recomputed(workers: Workers, wall: Seconds, cpu: Seconds) -> list[Row]:
    """Returns what recomputation saves on a worker, and its time over that without."""
    rows: list[Row] = []
    for name in wall:
        engine = OURS[name].engine if name in OURS else None
        if isinstance(engine, NativeEngineConfig) and (name == "native" or engine.recompute != "none"):
            sizes = [answer["bytes"] for answer in workers.ask(f"bytes {name}")]
            kept, peak = (max(of_workers) for of_workers in zip(*sizes, strict=True))
            row = {"recompute": engine.recompute, "kept_mib": kept / MIB, "peak_mib": peak / MIB}
            time = median_ratio(wall[name], wall["native"])
            rows.append({**row, "time": time, "cpu_time": median_ratio(cpu[name], cpu["native"])})
    return rows


def _goals(wall: Seconds, cpu: Seconds) -> list[Row]:
    """Returns the goals for ratios of time, in wall and in CPU time."""
    ours = ("native", "deepspeed")
    goals = [(name, other, "at most", 1.0) for name in ours for other in OTHERS]
    goals += [("deepspeed", "native", "at most", 1.1), ("one_process", "native", "at least", 0.85)]
    return [
        {
            "time of": name,
            "over": other,
            "goal": f"{bound} {limit}",
            "wall": median_ratio(wall[name], wall[other]),
            "cpu": median_ratio(cpu[name], cpu[other]) * _processes(other) / _processes(name),
        }
        for name, other, bound, limit in goals
        if name in wall and other in wall
    ]


if __name__ == "__main__":
    sys.exit(run_main(main))
