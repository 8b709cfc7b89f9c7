"""One worker of bench_parallel.py: it has all systems, and makes an update of one for each line that it reads."""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from bench_parallel import APART, OURS, SEQUENCE_LENGTH, SIZES, Ours
from bench_recompute import live_bytes
from split import Split
from systems import CAPACITY_FACTOR, Step, deepspeed_step, megatron_step, our_step
from tiny_model import global_batch, share_of
from workers import Tasks

from moe_train.config.kinds.data import BPEConfig
from moe_train.config.kinds.dispatch import AllToAllDispatchConfig
from moe_train.config.kinds.optim import AdamWConfig, ConstantScheduleConfig
from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, ParallelConfig, Recipe
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.world import World


def main() -> None:
    """Builds the systems and answers tasks: `update`, `split` or `bytes`, and the name of a system."""
    tasks = Tasks()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--systems", nargs="+")
    systems = Systems(parser.parse_args())
    measures: dict[str, Callable[[str], dict[str, Any]]] = {
        "update": systems.update,
        "split": systems.split,
        "bytes": systems.live_bytes,
    }
    for task, answer in tasks:
        kind, name = task.split()
        dist.barrier()
        answer(measures[kind](name))
    systems.world.leave()


class Systems:
    """All systems on this worker."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.world = world = World.from_env("cpu", 600.0)
        torch.set_num_threads(1)
        keep_freed_memory()
        alone, whole = replace(world, rank=0, size=1), recipe(options, world)
        make: dict[str, Callable[[], Step]] = {
            name: partial(_our_step, recipe(options, world, ours), world) for name, ours in OURS.items()
        }
        make |= dict.fromkeys(APART, partial(_our_step, recipe(options, alone), alone))
        make["deepspeed_moe"] = partial(deepspeed_step, whole, world, None)
        make["deepspeed_capacity"] = partial(deepspeed_step, whole, world, CAPACITY_FACTOR)
        make["megatron"] = partial(megatron_step, whole, world)
        self.steps = {name: make[name]() for name in options.systems}

    def update(self, name: str) -> dict[str, Any]:
        """Makes an update; returns its wall and CPU seconds and its loss."""
        if name == "one_process" and not self.world.is_main:
            return {"wall": 0.0, "cpu": 0.0, "loss": None}
        began, cpu_began = time.perf_counter(), time.process_time()
        loss = self.steps[name]()
        return {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu_began, "loss": loss}

    def split(self, name: str) -> dict[str, Any]:
        """Makes an update; returns the seconds of its parts."""
        with Split() as split:
            self.steps[name]()
        return split.seconds

    def live_bytes(self, name: str) -> dict[str, Any]:
        """Returns the bytes that a forward pass leaves, and the most in it and in the backward pass."""
        # One-sided rows lie in slabs of address space, whose size is not that of the rows.
        given = recipe(self.options, self.world, Ours(OURS[name].engine, AllToAllDispatchConfig()))
        _, step = our_step(given, self.world)
        (batch,) = share_of(global_batch(given, 0), self.world.rank, self.world.size)
        return {"bytes": live_bytes(step, batch)}


def _our_step(recipe: Recipe, world: World) -> Step:
    step, _ = our_step(recipe, world)
    return step


def recipe(options: argparse.Namespace, world: World, ours: Ours = OURS["native"]) -> Recipe:
    """Returns the recipe of all systems; a batch grows with the workers."""
    return Recipe(
        model=ModelConfig(num_layers=options.layers, d_model=options.d_model, num_heads=4, activation="relu"),
        moe=MoEConfig(
            every=1,
            num_experts=options.experts,
            capacity_factor=None,
            dispatch=ours.dispatch,
            router=SwitchRouterConfig(jitter=0.0, balance_coefficient=0.01),
        ),
        data=DataConfig(
            tokenizer=BPEConfig(vocab_size=4096),
            sequence_length=SEQUENCE_LENGTH,
            global_batch=options.sequences * world.size,
        ),
        optim=AdamWConfig(lr=1e-4, clip=1.0, weight_decay=0.0, schedule=ConstantScheduleConfig()),
        engine=ours.engine,
        parallel=ParallelConfig(expert=world.size),
    )


if __name__ == "__main__":
    main()
