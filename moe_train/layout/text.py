"""Writes the layout of a run for `moe-train show`: groups, what each rank holds, memory, and collectives of an update.

Few lines for a laptop's run of one worker, and as few for a thousand workers: ranks that are alike share a line.
"""

from collections.abc import Iterator

from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.kinds.engine import COMPILED_PARTS, NativeEngineConfig, OwnEngineConfig
from moe_train.config.plan import ParallelPlan
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.layout.activations import Kept, saved_bytes
from moe_train.layout.blocks import blocks
from moe_train.layout.exchange import Exchange, Work
from moe_train.layout.exchanges import exchanges
from moe_train.layout.gathered import gathered_at_most
from moe_train.layout.groups import axes, ranks
from moe_train.layout.held import Held, held
from moe_train.layout.shapes import Unit, units
from moe_train.layout.units import amount, counted, degrees
from moe_train.layout.zero import buckets, held_by_zero

LISTED = 16
"""As many workers are listed one by one; of more, those that hold the same experts share a line."""
SHARES = 4
"""As many of these lines are written, and then that it goes on."""


def layout(recipe: Recipe, plan: ParallelPlan, workers_per_node: int | None) -> list[str]:
    """Returns the lines for a recipe without problems; `workers_per_node` is None if it is not known."""
    parts, engine = units(spec_of(recipe)), recipe.engine
    drawn = [*_heading(recipe, plan), *_groups(plan, workers_per_node), *_experts(recipe, plan)]
    drawn += [*_compiled(recipe, plan), ""]
    if not isinstance(engine, OwnEngineConfig):
        return [*drawn, f"memory and collectives: not predicted for engine.kind={engine.kind}"]
    return [*drawn, *_memory(recipe, plan, engine, parts), *_collectives(recipe, plan, engine, parts)]


def _heading(recipe: Recipe, plan: ParallelPlan) -> Iterator[str]:
    spec = spec_of(recipe)
    layers, numbers = ", ".join(map(str, spec.moe_layers)), spec.num_experts
    sizes = f" of {', '.join(map(str, numbers))} experts" if len(set(numbers)) > 1 else ""
    moe = f"; MoE layers {layers} (counted from 0){sizes}" if layers else ", no MoE layer"
    yield f"layout: {counted(plan.workers, 'worker')}{moe}"
    if plan.workers > 1:
        yield f"  {degrees(plan)}"


def _groups(plan: ParallelPlan, workers_per_node: int | None) -> Iterator[str]:
    for axis in axes(plan):
        where = ""
        if workers_per_node is not None:
            hosts = axis.most_hosts(workers_per_node)
            where = "; each on one host" if hosts == 1 else f"; each on up to {hosts:,} hosts"
        first = ranks(next(axis.groups()))
        more = ", ..." if axis.num_groups > 1 else ""
        yield f"  {axis.name:<14}{counted(axis.num_groups, 'group'):>12} of {axis.size:,}: workers {first}{more}{where}"


def _experts(recipe: Recipe, plan: ParallelPlan) -> Iterator[str]:
    """Yields which workers hold which experts."""
    numbers = spec_of(recipe).num_experts
    if not numbers:
        return
    shards = plan.replica_shards if isinstance(recipe.engine, NativeEngineConfig) else 1
    sharding = f", sharded over {shards} workers" if shards > 1 else ""
    if plan.workers <= LISTED:
        for rank in range(plan.workers):
            yield f"  worker {rank}: {_share(rank, plan, numbers)}{sharding}"
        return
    for first in range(min(plan.exchange, SHARES)):
        alike = ranks(range(first, plan.workers, plan.exchange))
        noun = "worker" if plan.replicas == 1 else "workers"
        yield f"  {noun} {alike}: {_share(first, plan, numbers)}{sharding}"
    if plan.exchange > SHARES:
        yield f"  and so on to worker {plan.exchange - 1} and those that hold the same"


def _compiled(recipe: Recipe, plan: ParallelPlan) -> Iterator[str]:
    """Yields which parts of the model torch.compile makes code for, and which it does not."""
    engine = recipe.engine
    if not isinstance(engine, OwnEngineConfig):
        return
    without = engine.not_compiled(plan.tensor)
    if names := [name for name in COMPILED_PARTS[engine.compile] if name not in without]:
        yield f"  compiled in training: {', '.join(names)}"
    for name, reason in without.items():
        yield f"  not compiled: {name}, as {reason}"


def _share(rank: int, plan: ParallelPlan, numbers: list[int]) -> str:
    """Describes what a rank holds of the experts: "experts 0 to 3 of each MoE layer", or that of each size of layer."""
    share, part = rank // plan.expert_tensor % plan.expert, rank % plan.expert_tensor
    parts = []
    for number in dict.fromkeys(numbers):
        size = number // plan.expert
        layer = f"MoE layer of {number}" if len(set(numbers)) > 1 else "MoE layer"
        first, last = share * size, share * size + size - 1
        parts.append(f"{first if size == 1 else f'{first} to {last}'} of each {layer}")
    cut = f", part {part + 1} of {plan.expert_tensor} of each" if plan.expert_tensor > 1 else ""
    noun = "expert" if max(numbers) == plan.expert else "experts"
    return f"{noun} {' and '.join(parts)}{cut}"


def _memory(recipe: Recipe, plan: ParallelPlan, engine: OwnEngineConfig, parts: list[Unit]) -> Iterator[str]:
    of_parts = (
        held_by_zero(parts, plan, engine, recipe.optim)
        if isinstance(engine, DeepSpeedEngineConfig)
        else held(parts, plan, recipe.optim)
    )
    yield f"{'memory of a worker':<22}{'parameters':>14}{'gradients':>14}{'optimizer':>14}"
    for part, of_part in of_parts.items():
        if of_part.parameters:
            yield _row(f"  {part}", of_part)
    every = of_parts.values()
    yield _row(
        "  together",
        Held(*(sum(getattr(one, of) for one in every) for of in ("parameters", "gradients", "optimizer"))),
    )
    work = work_of(recipe, plan)
    kept = saved_bytes(spec_of(recipe), plan, work.sequences, kept_of(recipe, plan), work.passes)
    size = (
        f"{counted(work.microbatches, 'microbatch', 'microbatches')} of {counted(work.sequences, 'sequence')}"
    )
    yield f"  {'activations':<20}{amount(kept):>14}  kept for the backward pass at most, of {size}"
    if isinstance(engine, NativeEngineConfig):
        yield from _of_fsdp(plan, engine, parts)
    elif isinstance(engine, DeepSpeedEngineConfig) and engine.stage:
        yield from _of_zero(engine)


def kept_of(recipe: Recipe, plan: ParallelPlan) -> Kept:
    """Returns what decides how much is kept of a forward pass."""
    engine = recipe.engine
    gathers_bf16 = isinstance(engine, NativeEngineConfig) and engine.gather_dtype is not None
    recompute = engine.recompute if isinstance(engine, OwnEngineConfig) else "none"
    return Kept(recipe.precision == "bf16", recompute, not (gathers_bf16 and plan.data > 1))


def _of_fsdp(plan: ParallelPlan, engine: NativeEngineConfig, parts: list[Unit]) -> Iterator[str]:
    if gathered := gathered_at_most(parts, plan, engine):
        yield f"  {'gathered weights':<20}{amount(gathered):>14}  in the backward pass at most"
    if engine.offload:
        yield "  parameters, gradients and optimizer are in host memory, gathered weights and activations on the GPU"


def _of_zero(engine: DeepSpeedEngineConfig) -> Iterator[str]:
    own = buckets(engine)
    yield (
        f"  {'buckets':<20}{amount(own.bytes):>14}  of gradients in the backward pass, "
        f"zero_optimization.reduce_bucket_size={own.elements:,}"
    )
    yield "  optimizer: its state and the fp32 values of a worker's ranges, as if they cut every part evenly"


def _row(name: str, of_part: Held) -> str:
    figures = (of_part.parameters, of_part.gradients, of_part.optimizer)
    return f"{name:<22}" + "".join(f"{amount(figure):>14}" for figure in figures)


def work_of(recipe: Recipe, plan: ParallelPlan) -> Work:
    """Returns what a rank does in an update."""
    share = recipe.data.global_batch // plan.data
    sequences = recipe.data.micro_batch or share
    microbatches, passes = share // sequences, recipe.objective.num_passes
    counts_first = microbatches > 1 and bool(spec_of(recipe).moe) and recipe.moe.router.learns_from_batch
    counting = microbatches * passes if counts_first else 0
    return Work(microbatches, passes, sequences, recipe.precision == "bf16", counting)


def _collectives(
    recipe: Recipe, plan: ParallelPlan, engine: OwnEngineConfig, parts: list[Unit]
) -> Iterator[str]:
    if plan.workers == 1:
        return
    work = work_of(recipe, plan)
    for name, one in blocks(spec_of(recipe), plan, engine, work):
        yield from _listed(f"collectives of {name}, a microbatch", one)
    yield from _listed("collectives of an update", exchanges(spec_of(recipe), parts, plan, engine, work))
    yield "  and sums of a few numbers"


def _listed(title: str, every: list[Exchange]) -> Iterator[str]:
    yield f"{title:<58}{'number':>8}{'bytes each':>14}{'bytes':>14}"
    for one in every:
        name = f"  {one.kind} over {one.axis}: {one.what}"
        yield f"{name:<58}{one.number:>8,}{amount(one.bytes / one.number):>14}{amount(one.bytes):>14}"
