"""Checks that a recipe's model and batch can be distributed as `parallel` says."""

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from moe_train.config.divisors import choose_divisor
from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.plan import ParallelPlan
from moe_train.config.problem import Problem
from moe_train.config.resolve import spec_of
from moe_train.config.schema import ParallelConfig, Recipe
from moe_train.config.tensor import tensor_problems
from moe_train.errors import LayoutError

A_JOB_HAS = "(a job has --nodes times --workers-per-node)"


def plan_of(parallel: ParallelConfig, workers: int | None = None) -> ParallelPlan:
    """Returns the plan for `workers` workers; None: for the data degree of the recipe, or the smallest that fits.

    Raises LayoutError if the degrees do not fit together.
    """
    for problem in degree_problems(parallel, workers):
        raise LayoutError(str(problem))
    exchange = parallel.exchange
    smallest = math.lcm(exchange // math.gcd(exchange, parallel.tensor), parallel.shard or 1)
    data = parallel.data or (workers // parallel.tensor if workers else smallest)
    return ParallelPlan(
        data=data,
        tensor=parallel.tensor,
        expert=parallel.expert,
        expert_tensor=parallel.expert_tensor,
        sequence=parallel.sequence,
        shard=parallel.shard,
    )


def layout_problems(recipe: Recipe, workers: int | None) -> Iterator[Problem]:
    """Yields problems of the degrees, and of what they have to divide."""
    misfit = next(degree_problems(recipe.parallel, workers), None)
    if misfit is not None:
        yield misfit
        return
    plan = plan_of(recipe.parallel, workers)
    yield from _not_built(recipe)
    yield from tensor_problems(recipe, plan)
    yield from _experts(recipe, plan)
    yield from _offload(recipe, workers)


def _not_built(recipe: Recipe) -> Iterator[Problem]:
    """Yields the degrees that moe-train does not implement yet."""
    parallel = recipe.parallel
    if parallel.tensor > 1 and recipe.engine.kind not in ("native", "deepspeed"):
        yield Problem(
            "parallel.tensor",
            parallel.tensor,
            f"is not implemented yet for engine.kind={recipe.engine.kind}",
            "set parallel.tensor=1, or engine.kind=native",
        )
    if parallel.expert_tensor > 1 and recipe.engine.kind not in ("native", "deepspeed"):
        yield Problem(
            "parallel.expert_tensor",
            parallel.expert_tensor,
            f"is not implemented yet for engine.kind={recipe.engine.kind}",
            "set parallel.expert_tensor=1, or engine.kind=native",
        )


def _experts(recipe: Recipe, plan: ParallelPlan) -> Iterator[Problem]:
    """Yields problems of experts: their number, and the widths along which FSDP2 shards them over replicas."""
    spec = spec_of(recipe)
    shared = math.gcd(*spec.num_experts)
    if shared % plan.expert:
        each = "each of " if isinstance(recipe.moe.num_experts, list) else ""
        yield Problem(
            "parallel.expert",
            plan.expert,
            f"must divide {each}moe.num_experts={recipe.moe.num_experts}",
            f"{choose_divisor(shared)}",
        )
    if not spec.moe:
        return
    slices, width = plan.expert_tensor, spec.moe[0].d_ff
    if width % slices:
        yield Problem(
            "parallel.expert_tensor", slices, f"must divide moe.d_ff={width}", choose_divisor(width)
        )
        return
    if not isinstance(recipe.engine, NativeEngineConfig):
        return  # ZeRO cuts flattened weights, whatever their widths
    d_model, shards = spec.moe[0].d_model, plan.replica_shards
    slice_of = "" if slices == 1 else f" / parallel.expert_tensor={slices}"
    sizes = {f"model.d_model={d_model}": d_model, f"moe.d_ff={width}{slice_of}": width // slices}
    better = _degrees_that_shard(plan, shared, sizes.values())
    choice = f"parallel.expert={' or '.join(map(str, better[:2]))}, " if better else ""
    for what, size in sizes.items():
        if size % shards:
            yield Problem(
                "parallel.expert",
                plan.expert,
                f"makes {shards} workers shard each expert, so {shards} must divide {what}",
                f"choose {choice}a width that {shards} divides, or a smaller parallel.shard",
            )


def _degrees_that_shard(plan: ParallelPlan, num_experts: int, sizes: Collection[int]) -> list[int]:
    """Returns the expert degrees whose replicas can shard experts of these sizes on the workers of `plan`."""
    fitting = (
        replace(plan, expert=degree)
        for degree in range(1, min(num_experts, plan.workers) + 1)
        if num_experts % degree == 0 and plan.workers % (degree * plan.expert_tensor) == 0
    )
    return [other.expert for other in fitting if all(size % other.replica_shards == 0 for size in sizes)]


def _offload(recipe: Recipe, workers: int | None) -> Iterator[Problem]:
    """Yields a problem if weights are to be offloaded where nothing shards them."""
    engine, known = recipe.engine, recipe.parallel.data is not None or workers is not None
    is_offloaded = isinstance(engine, NativeEngineConfig) and engine.offload
    if is_offloaded and known and data_degree(recipe.parallel, workers) == 1:
        yield Problem(
            "engine.offload",
            "true",
            "is done by FSDP2, which needs at least 2 data-parallel workers",
            "run with more workers, or set engine.offload=false",
        )


def batch_problems(recipe: Recipe, workers: int | None) -> Iterator[Problem]:
    """Yields problems of the batch, whose sequences the data-parallel workers share."""
    data, batch = data_degree(recipe.parallel, workers), recipe.data.global_batch
    micro = recipe.data.micro_batch
    if batch % data:
        fits = " or ".join(str(fit) for fit in (batch - batch % data, batch + data - batch % data) if fit)
        fewer = f", or at most {batch} data-parallel workers; parallel.tensor lowers their number"
        yield Problem(
            "data.global_batch",
            batch,
            f"must be a multiple of the {data} data-parallel workers",
            f"use {fits}{fewer if batch < data else ''}",
        )
    elif micro is not None and (batch // data) % micro:
        yield Problem(
            "data.micro_batch",
            micro,
            f"must divide a worker's share of the batch, {batch} / {data} = {batch // data}",
            f"{choose_divisor(batch // data)}",
        )
    elif spec_of(recipe).moe and (micro or batch // data) % recipe.moe.group_sequences:
        yield Problem(
            "moe.group_sequences",
            recipe.moe.group_sequences,
            f"must divide the {micro or batch // data} sequences of one forward pass",
            f"{choose_divisor(micro or batch // data)}",
        )
    yield from _validation(recipe, data)


def _validation(recipe: Recipe, data: int) -> Iterator[Problem]:
    group = recipe.moe.group_sequences if spec_of(recipe).moe else 1
    if recipe.data.validation_sequences // group < data:
        yield Problem(
            "data.validation_sequences",
            recipe.data.validation_sequences,
            f"must be at least moe.group_sequences ({group}) x {data} data-parallel workers = {group * data}",
            f"use {group * data} or more",
        )


def data_degree(parallel: ParallelConfig, workers: int | None) -> int:
    """Returns the shares of the global batch, also of degrees that do not fit; 1 if it is not known."""
    return parallel.data or max((workers or 1) // parallel.tensor, 1)


def degree_problems(parallel: ParallelConfig, workers: int | None) -> Iterator[Problem]:
    """Yields the first rule by which the degrees do not fit together, on `workers` workers if these are known."""
    data, tensor = parallel.data, parallel.tensor
    if workers is not None and data is not None and data * tensor != workers:
        times = f"times parallel.tensor={tensor} " if tensor > 1 else ""
        yield Problem(
            "parallel.data",
            data,
            f"{times}must equal the number of workers, which is {workers}",
            f"run with --workers {data * tensor} {A_JOB_HAS}, or set parallel.data=null",
        )
        return
    if workers is not None and workers % tensor:
        yield _indivisible("parallel.tensor", tensor, tensor, workers)
        return
    exchange = parallel.exchange
    known = workers if data is None else data * tensor
    if known is not None and known % exchange:
        yield _indivisible("parallel.expert", parallel.expert, exchange, known)
        return
    yield from _shard_problems(parallel, None if known is None else known // tensor)


def _shard_problems(parallel: ParallelConfig, data: int | None) -> Iterator[Problem]:
    """Yields the rule by which groups that shard weights fit neither the data axis nor the sets of experts."""
    shard, exchange = parallel.shard, parallel.exchange
    if shard is None:
        return
    if data is not None and data % shard:
        yield Problem(
            "parallel.shard",
            shard,
            f"must divide the data-parallel workers, which are {data}",
            f"{choose_divisor(data)}, or null to shard over all",
        )
    elif shard * parallel.tensor % exchange and exchange % (shard * parallel.tensor):
        times = f"times parallel.tensor={parallel.tensor} " if parallel.tensor > 1 else ""
        yield Problem(
            "parallel.shard",
            shard,
            f"{times}must divide the {exchange} workers that hold a set of experts together, or be a multiple of them",
            f"set parallel.shard={exchange // math.gcd(exchange, parallel.tensor)}, or null to shard over all",
        )


def _indivisible(key: str, degree: int, product: int, workers: int) -> Problem:
    """Returns the problem of a degree that makes groups of `product` workers, which do not divide `workers`."""
    times = f"times parallel.expert_tensor={product // degree} " if product > degree else ""
    fits = f"{choose_divisor(workers)}, or " if product == degree else ""
    return Problem(
        key,
        degree,
        f"{times}must divide the number of workers, which is {workers}",
        f"{fits}run with --workers {product} {A_JOB_HAS}",
    )
