"""Counts what DeepSpeed's ZeRO holds on a rank, and the collectives that it makes in an update.

Read from DeepSpeed 0.19 and from what engines/deepspeed*.py give it; `moe-train plan` runs DeepSpeed on fake tensors.
ZeRO flattens each group of parameters (deepspeed_groups.py), fills it up, and cuts it into as many ranges as workers
hold the same parameters. The model works on whole parameters; each worker updates fp32 copies of its ranges.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from moe_train.config.kinds.deepspeed import DeepSpeedEngineConfig
from moe_train.config.kinds.deepspeed_keys import read
from moe_train.config.kinds.optim import OptimConfig
from moe_train.config.plan import ParallelPlan
from moe_train.layout.exchange import Exchange, Work
from moe_train.layout.held import FP32, Held, working_shape
from moe_train.layout.shapes import Parameter, Unit

BUCKET_OF_STAGE_0 = 500_000_000
"""Gradients, in elements, after which stage 0 begins another all-reduce."""
BUCKET = 500_000_000
"""`zero_optimization.reduce_bucket_size`, if the recipe does not set it."""
RENEWED = ("experts", "router")
"""Parts that a router may begin anew, which are in groups of their own."""


@dataclass(frozen=True)
class Buckets:
    """Describes the buffers in which stages 1 and 2 collect gradients."""

    elements: int
    number: int
    """Two if a bucket is filled while another is reduced."""
    reduces_to_each: bool
    """A range of gradients is reduced to the worker that needs it, instead of all to all workers."""

    @property
    def bytes(self) -> int:
        """Returns the bytes of the buffers, which are there from the beginning of a backward pass to its end."""
        return self.number * FP32 * self.elements


def buckets(engine: DeepSpeedEngineConfig) -> Buckets:
    """Returns the buffers of `engine.config`; without any at stage 0."""
    keys = read(engine.config).get("zero_optimization", {})
    if engine.stage == 0:
        return Buckets(0, 0, False)
    return Buckets(
        keys.get("reduce_bucket_size", BUCKET),
        2 if keys.get("overlap_comm") else 1,
        not keys.get("use_multi_rank_bucket_allreduce", True),
    )


def held_by_zero(
    units: Iterable[Unit], plan: ParallelPlan, engine: DeepSpeedEngineConfig, optim: OptimConfig
) -> Mapping[str, Held]:
    """Returns the bytes that a rank holds of each part of the model, its ranges as if they cut every part evenly.

    The optimizer's are its state and, with ranges, the fp32 values that it updates. Gradients are those before the last
    reduction of an update.
    """
    found: dict[str, list[int]] = {}
    for unit in units:
        degree = _degree(unit, plan) if engine.stage else 1
        for parameter in unit.parameters:
            shape = working_shape(parameter, unit.is_experts, plan)
            own = parameter.shape[1:] if unit.is_experts else parameter.shape
            whole, of_range = prod(shape), -(-prod(shape) // degree)
            state = (
                optim.state_elements((of_range,), (of_range,)) + of_range
                if engine.stage
                else optim.state_elements(shape, own)
            )
            sums = found.setdefault(parameter.part, [0, 0, 0])
            for index, number in enumerate((whole, of_range if engine.stage == 2 else whole, state)):
                sums[index] += FP32 * number
    return {part: Held(*sums) for part, sums in found.items()}


def reductions(
    units: list[Unit], plan: ParallelPlan, engine: DeepSpeedEngineConfig, work: Work
) -> Iterator[Exchange]:
    """Yields the sums of gradients, and the gathering of what was updated.

    All-reduces of more than a bucket of gradients are counted as if parameters came in order.
    """
    times = work.microbatches if engine.stage == 2 else 1
    own = buckets(engine)
    for is_cut, axis, what in ((False, "data", "all but experts"), (True, "replica", "experts")):
        members = [unit for unit in units if _is_cut(unit, plan) == is_cut]
        degree = plan.replicas if is_cut else plan.data
        if degree == 1 or not members:
            continue
        what = what if plan.sums_experts_apart else "all"
        sizes = [
            prod(working_shape(each, unit.is_experts, plan)) for unit in members for each in unit.parameters
        ]
        number = _filled(sizes, own.elements, BUCKET_OF_STAGE_0)
        kind = "all_reduce"
        if own.reduces_to_each:
            kind, number = "reduce", number * degree
        yield Exchange(kind, axis, f"gradients of {what}", times * number, times * FP32 * sum(sizes))
        if engine.stage:
            groups = _flattened(members, plan, degree)
            yield Exchange("all_gather", axis, f"weights of {what}", len(groups), FP32 * sum(groups))


def _degree(unit: Unit, plan: ParallelPlan) -> int:
    """Returns how many workers hold the same parameters of a unit, as DeepSpeed knows."""
    return plan.replicas if _is_cut(unit, plan) else plan.data


def _is_cut(unit: Unit, plan: ParallelPlan) -> bool:
    """Returns whether workers that share the gradients of all else hold others of these, or have other gradients."""
    return unit.is_experts and plan.sums_experts_apart


def _filled(sizes: list[int], bucket: int, without: int) -> int:
    """Returns how many sums parameters of these sizes need: one for a full bucket, or one as soon as it is large."""
    number, filled = 1, 0
    for size in sizes:
        if (filled and filled + size > bucket) if bucket else filled > without:
            number, filled = number + 1, 0
        filled += size
    return number


def _flattened(units: list[Unit], plan: ParallelPlan, degree: int) -> list[int]:
    """Returns the elements of each flattened group, filled up to a multiple of two for each range."""
    elements: Counter[tuple[bool, bool]] = Counter()
    for unit in units:
        for parameter in unit.parameters:
            elements[_group(parameter)] += prod(working_shape(parameter, unit.is_experts, plan))
    return [-(-number // (2 * degree)) * 2 * degree for number in elements.values()]


def _group(parameter: Parameter) -> tuple[bool, bool]:
    """Returns what decides the group of a parameter: whether its weight decays, and whether it may begin anew."""
    return len(parameter.shape) > 1, parameter.part in RENEWED
