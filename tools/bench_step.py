"""Tokens per second of a whole training step - forward, backward, clipping, AdamW - against a dense model.

    python tools/bench_step.py [--workers 1 2] [--rounds 12] [--markdown] [--json FILE]

Systems, all of the same backbone and equal active FLOPs per token (top-1), each in processes of its own, as one
trains, making their steps in turn:
dense                no MoE layer, our engine
moe_train            our MoE layer, dropless, our engine; 2 workers share the experts out (parallel.expert=2)
deepspeed_capacity   our transformer with DeepSpeed's MoE layer in the place of ours, capacity factor 1.25 (drops
                     tokens), in a plain loop: DistributedDataParallel for what is not an expert (2 workers),
                     experts shared out by DeepSpeed (ep_size=2), one norm and clip, the same fused AdamW
deepspeed_dropless   the same with drop_tokens=False
1 worker has 2 threads, 2 workers have 1 thread each. Tokens are uniformly random, and all systems make some steps
before the first round: a router that has just been drawn sends half of all tokens to one expert, which is not what a
training is like; after these steps the CV of the loads is about 0.5.
"""

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from measurement import Row, add_output_options, interleave, median_ratio, peak_memory_gib, report
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from workers import Tasks, Workers

from moe_cluster.output import run_main
from moe_train.checkpoint.layout import Shard
from moe_train.config.kinds.data import BPEConfig
from moe_train.config.kinds.optim import AdamWConfig, ConstantScheduleConfig
from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.layout import plan_of
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, ParallelConfig, Recipe
from moe_train.config.spec import MoESpec
from moe_train.data.batch import Batch
from moe_train.model.build import build as build_model
from moe_train.model.transformer import Transformer
from moe_train.moe.dispatch.through import Beside
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.random import RandomStream
from moe_train.results import MoEStats
from moe_train.step.training_step import TrainingStep

SYSTEMS = ("moe_train", "deepspeed_capacity", "deepspeed_dropless")
SEQUENCE_LENGTH = 128
CAPACITY_FACTOR = 1.25
BALANCE_COEFFICIENT = 0.01
Stats = tuple[MoEStats, ...]


def main() -> None:
    """Start the workers of every layout in turn, or be one of them."""
    options = _options()
    if options.worker:
        _work(options)
        return
    tables = (_measure(options, workers) for workers in options.workers)
    report(tables, options, lambda: f"peak memory of a worker {peak_memory_gib():.1f} GiB, of one system")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="A whole training step against a dense model."
    )
    parser.add_argument("--workers", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32], help="numbers of experts")
    parser.add_argument("--rounds", type=int, default=12, help="steps of every system")
    parser.add_argument("--settle", type=int, default=24, help="steps of every system before the first round")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=32, help="of 128 tokens, in a global batch")
    add_output_options(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(options: argparse.Namespace, workers: int) -> list[Row]:
    """Start every system, let each make its steps in turn, and compare them round by round."""
    systems = [("dense", 0)]
    systems += [(name, experts) for experts in options.experts for name in SYSTEMS]
    running = {f"{name} {experts}": Group(options, name, experts, workers) for name, experts in systems}
    try:
        seconds = interleave(
            {key: group.step for key, group in running.items()}, budget_s=0.0, least=options.rounds
        )
    finally:
        for group in running.values():
            group.stop()
    tokens = options.sequences * SEQUENCE_LENGTH
    return [
        {
            "system": name,
            "num_experts": experts,
            "workers": workers,
            "tokens_per_second": round(tokens / statistics.median(seconds[f"{name} {experts}"])),
            "over_dense": median_ratio(seconds["dense 0"], seconds[f"{name} {experts}"]),
            "cv": running[f"{name} {experts}"].cv,
        }
        for name, experts in systems
    ]


class Group:
    """The worker processes of one system."""

    def __init__(self, options: argparse.Namespace, system: str, experts: int, workers: int):
        """Start the workers and let them make the settling steps."""
        arguments = [f"--worker={system}", f"--d-model={options.d_model}", f"--sequences={options.sequences}"]
        self.workers = Workers(__file__, [*arguments, "--experts", str(experts)], workers)
        self.cv = 0.0
        for _ in range(options.settle):
            self.step()

    def step(self) -> float:
        """Wall seconds of one step, as the slowest worker saw it."""
        answers = self.workers.ask("step")
        self.cv = answers[0]["cv"]
        return max(answer["seconds"] for answer in answers)

    def stop(self) -> None:
        """End the workers."""
        self.workers.stop()


def _work(options: argparse.Namespace) -> None:
    """One worker of one system: a step for every line of its input."""
    tasks = Tasks()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    world = World.from_env("cpu", 600.0)
    torch.set_num_threads(2 // world.size)
    keep_freed_memory()
    recipe = _recipe(options, options.experts[0], world.size)
    if options.worker.startswith("deepspeed"):
        _start_deepspeed()
        step = _deepspeed_step(recipe, world, drop_tokens=options.worker == "deepspeed_capacity")
    else:
        step = _our_step(recipe, world)
    for _, answer in tasks:
        world.barrier()
        began = time.perf_counter()
        stats = step()
        world.barrier()
        seconds = time.perf_counter() - began
        loads = (
            world.everyone.sum(torch.stack([of_layer.load.double() for of_layer in stats])) if stats else None
        )
        cv = 0.0 if loads is None else float((loads.std(1, unbiased=False) / loads.mean(1)).mean())
        answer({"seconds": seconds, "cv": round(cv, 2)})
    world.leave()


def _recipe(options: argparse.Namespace, num_experts: int, workers: int) -> Recipe:
    moe = MoEConfig(
        every=2 if num_experts else 0,
        num_experts=num_experts or 1,
        capacity_factor=None,
        router=SwitchRouterConfig(jitter=0.0, balance_coefficient=BALANCE_COEFFICIENT),
    )
    return Recipe(
        model=ModelConfig(num_layers=4, d_model=options.d_model, num_heads=4),
        moe=moe,
        data=DataConfig(
            tokenizer=BPEConfig(vocab_size=4096),
            sequence_length=SEQUENCE_LENGTH,
            global_batch=options.sequences,
        ),
        optim=AdamWConfig(lr=1e-4, clip=1.0, schedule=ConstantScheduleConfig()),
        parallel=ParallelConfig(expert=workers if num_experts else 1),
    )


def _batch(recipe: Recipe, world: World, step: int) -> Batch:
    """This rank's share of a batch of random tokens, the same batch for all systems at a step."""
    size, length = recipe.data.global_batch // world.size, recipe.data.sequence_length
    generator = torch.Generator().manual_seed(step * world.size + world.rank)
    drawn = torch.randint(recipe.data.tokenizer.size, (size, length + 1), generator=generator)
    ids = torch.arange(size) + size * world.rank + recipe.data.global_batch * step
    return Batch(drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous(), ids)


def _our_step(recipe: Recipe, world: World) -> Callable[[], Stats]:
    mesh = Mesh.build(plan_of(recipe.parallel, world.size), world)
    training_step = TrainingStep.build(recipe, mesh)
    batches = [_batch(recipe, world, step) for step in range(4)]
    done = 0

    def step() -> Stats:
        nonlocal done
        result = training_step.update([batches[done % 4]], done, False)
        done += 1
        return result.stats[0]

    return step


def _start_deepspeed() -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


class DeepSpeedLayer(MoELayer):
    """DeepSpeed's MoE layer in the place of ours."""

    def __init__(self, spec: MoESpec, ep_size: int, drop_tokens: bool):
        nn.Module.__init__(self)
        from deepspeed.moe.layer import MoE

        width, hidden = spec.d_model, spec.d_ff
        expert = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False)
        )
        self.moe = MoE(
            width,
            expert,
            num_experts=spec.num_experts,
            ep_size=ep_size,
            k=1,
            capacity_factor=CAPACITY_FACTOR,
            drop_tokens=drop_tokens,
            use_tutel=False,
        )
        self.moe.set_deepspeed_parallelism()

    def forward(
        self, x: Tensor, context: RouteContext, residual: Tensor | None = None, beside: Beside | None = None
    ) -> tuple[Tensor, MoEStats]:
        """Returns what our layer does, with the one count that DeepSpeed makes."""
        assert beside is None, "no shared experts"
        return self.route(x, context)

    def route(self, x: Tensor, context: RouteContext) -> tuple[Tensor, MoEStats]:
        """Routes and runs the experts at once, as DeepSpeed does; the decision is what they made of each token."""
        y, balance, load = self.moe(x.unsqueeze(0))
        losses, coefficients = {"balance": balance}, {"balance": BALANCE_COEFFICIENT}
        return y.squeeze(0), MoEStats({"load": load}, losses, coefficients)

    def through_experts(self, x: Tensor, decision: Tensor, context: RouteContext) -> Tensor:
        """Returns what the experts have made already."""
        return decision


def _deepspeed_step(recipe: Recipe, world: World, *, drop_tokens: bool) -> Callable[[], Stats]:
    model = _deepspeed_model(recipe, world, drop_tokens)
    named = dict(model.named_parameters())
    experts = [parameter for name, parameter in named.items() if ".deepspeed_experts." in name]
    is_expert = {id(parameter) for parameter in experts}
    shared = [parameter for parameter in named.values() if id(parameter) not in is_expert]
    forward: nn.Module = model
    if world.size > 1:
        ignored = [name for name, parameter in named.items() if id(parameter) in is_expert]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        forward = DistributedDataParallel(model)
    held = {name: Shard(tensor, tuple(tensor.shape), (0,) * tensor.ndim) for name, tensor in named.items()}
    mesh = Mesh(world)
    optimizer = build("optim", recipe.optim, shards=held, mesh=mesh)
    objective = build("objective", recipe.objective)
    batches = [_batch(recipe, world, step) for step in range(4)]
    done = 0

    def step() -> Stats:
        nonlocal done
        batch = batches[done % 4]
        optimizer.zero_grad(set_to_none=True)
        forward_pass = Pass(training=True, progress=0.0, random=RandomStream(0, done))
        context = RouteContext(forward_pass, Rows(batch.sequence_ids, batch.tokens))
        output = forward(batch.tokens, context)
        stats = output.moe
        auxiliary = sum(BALANCE_COEFFICIENT * of_layer.losses["balance"] for of_layer in stats)
        (objective(output.logits, batch) + auxiliary).backward()
        _clip(shared, experts, recipe.optim.clip or 1.0, world)
        optimizer.step()
        done += 1
        return stats

    return step


def _deepspeed_model(recipe: Recipe, world: World, drop_tokens: bool) -> Transformer:
    """Our transformer, its MoE layers replaced, with our initial values but for DeepSpeed's gate and experts."""
    model = build_model(spec_of(recipe))
    assert isinstance(model, Transformer)
    for block in model.layers:
        if isinstance(block.feedforward, MoELayer):
            block.feedforward = DeepSpeedLayer(block.feedforward.spec, world.size, drop_tokens)
    return model


def _clip(shared: list[nn.Parameter], experts: list[nn.Parameter], limit: float, world: World) -> None:
    """Average the experts' gradients, take one norm over what all workers hold, and clip to it."""
    owned = [parameter.grad for parameter in experts if parameter.grad is not None]
    common = [parameter.grad for parameter in shared if parameter.grad is not None]
    if world.size > 1:
        torch._foreach_mul_(owned, 1 / world.size)
    squared = torch.nn.utils.get_total_norm(owned).square()
    squared += torch.nn.utils.get_total_norm(common).square() / world.size
    norm = world.everyone.sum(squared).sqrt().item()
    if norm > limit:
        torch._foreach_mul_(owned + common, limit / norm)


if __name__ == "__main__":
    sys.exit(run_main(main))
