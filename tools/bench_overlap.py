"""Time of an update with `engine.overlap` over that without, between two processes of this machine.

    python tools/bench_overlap.py [--rounds 12] [--layers 4] [--markdown] [--json FILE]

All make their updates in turn, so what else the machine does hits all alike. `over_none` is the median over rounds of
the wall time over that of `none`, `cpu_over_none` of the CPU time; `one_sided` is the default dispatcher, without
overlap. On one machine rows travel through memory, by the processors that compute. With a link between, which only
waits, in a network namespace of its own (Linux, no rights needed):

    unshare -Urn sh -c 'ip link set lo up; tc qdisc add dev lo root tbf rate 200mbit burst 128kb latency 1s;
        GLOO_SOCKET_IFNAME=lo python tools/bench_overlap.py'
"""

import argparse
import logging
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from measurement import Row, add_output_options, interleave, median_ratio, peak_memory_gib, report
from workers import Tasks, Workers

from moe_cluster.output import run_main
from moe_train.config.kinds.data import BPEConfig
from moe_train.config.kinds.dispatch import AllToAllDispatchConfig, OneSidedDispatchConfig
from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.config.layout import plan_of
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, ParallelConfig, Recipe
from moe_train.data.batch import Batch
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep

WORKERS, SEQUENCES, LENGTH = 2, 16, 128
ONE_SIDED = "one_sided"
SYSTEMS = ("none", "shared", "halves", ONE_SIDED)


def main() -> None:
    """Prints a line for each value of engine.overlap."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    add_output_options(parser)
    options = parser.parse_args()
    if options.as_worker:
        work(options.layers)
        return
    workers = Workers(__file__, ["--as-worker", f"--layers={options.layers}"], WORKERS)
    try:
        tables = [measured(workers, options.rounds)]
    finally:
        workers.stop()
    tokens = WORKERS * SEQUENCES * LENGTH
    report(
        tables,
        options,
        lambda: (
            f"{options.layers} layers of width 256 with 8 experts, 2 for each of {tokens:,} tokens, and a shared one; "
            f"{WORKERS} processes of 1 thread; peak memory of one {peak_memory_gib():.1f} GiB"
        ),
    )


def measured(workers: Workers, rounds: int) -> list[Row]:
    """Returns what each system took."""
    cpu: dict[str, list[float]] = {system: [] for system in SYSTEMS}

    def update(system: str) -> float:
        answers = workers.ask(system)
        cpu[system].append(sum(answer["cpu"] for answer in answers))
        return max(float(answer["wall"]) for answer in answers)

    wall = interleave(
        {system: lambda system=system: update(system) for system in SYSTEMS}, budget_s=0, least=rounds
    )  # type: ignore[misc]
    return [
        {
            "overlap": system,
            "seconds": statistics.median(wall[system]),
            "over_none": median_ratio(wall[system], wall["none"]),
            "cpu_over_none": median_ratio(cpu[system][1:], cpu["none"][1:]),  # the first round warms up
        }
        for system in SYSTEMS
    ]


def work(layers: int) -> None:
    """Answers tasks, each the name of a system, with the times of an update."""
    tasks = Tasks()
    logging.disable(logging.WARNING)
    world = World.from_env("cpu", 600.0)
    torch.set_num_threads(1)
    keep_freed_memory()
    recipes = {system: recipe(system, layers) for system in SYSTEMS}
    mesh = Mesh.build(plan_of(recipes["none"].parallel, world.size), world)
    steps = {system: TrainingStep.build(each, mesh) for system, each in recipes.items()}
    batch = text(recipes["none"], world)
    for task, answer in tasks:
        dist.barrier()
        began, cpu_began = time.perf_counter(), time.process_time()
        steps[task].update([batch], 0, False)
        times: dict[str, Any] = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}
        answer(times)
    world.leave()


def text(recipe: Recipe, world: World) -> Batch:
    """Returns random tokens, other ones on each worker."""
    generator = torch.Generator().manual_seed(world.rank)
    tokens = torch.randint(recipe.data.tokenizer.size, (SEQUENCES, LENGTH + 1), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(SEQUENCES) + SEQUENCES * world.rank)


def recipe(system: str, layers: int) -> Recipe:
    """Returns the recipe of a system."""
    is_one_sided = system == ONE_SIDED
    return Recipe(
        model=ModelConfig(num_layers=layers, d_model=256, num_heads=4),
        moe=MoEConfig(
            every=1,
            num_experts=8,
            shared_experts=1,
            capacity_factor=None,
            router=TopKRouterConfig(k=2),
            dispatch=OneSidedDispatchConfig() if is_one_sided else AllToAllDispatchConfig(),
        ),
        data=DataConfig(
            tokenizer=BPEConfig(vocab_size=1024), sequence_length=LENGTH, global_batch=SEQUENCES * WORKERS
        ),
        engine=NativeEngineConfig(overlap="none" if is_one_sided else system),  # type: ignore[arg-type]
        parallel=ParallelConfig(expert=WORKERS),
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
