"""Lists the collectives of one block of each sort, for a microbatch: what lies on the path of every layer."""

from collections.abc import Iterator
from dataclasses import replace

from moe_train.config.kinds.engine import OwnEngineConfig
from moe_train.config.plan import ParallelPlan
from moe_train.config.spec import ModelSpec
from moe_train.layout.exchange import Exchange, Work, together
from moe_train.layout.exchanges import of_rows, tensor_parallel


def blocks(
    spec: ModelSpec, plan: ParallelPlan, engine: OwnEngineConfig, work: Work
) -> Iterator[tuple[str, list[Exchange]]]:
    """Yields the name and the collectives of the first dense and the first MoE block of each stack that has any."""
    once = replace(work, microbatches=1, passes=1, counting_passes=0)
    for stack in spec.stacks:
        of = f"the {stack.name}'s" if len(spec.stacks) > 1 else "the"
        firsts = {moe is None: moe for moe in reversed(stack.layers)}
        for is_dense, moe in sorted(firsts.items()):
            every: list[Exchange] = []
            if plan.tensor > 1:
                parallel = tensor_parallel(spec, plan, engine, once)
                every += parallel.of_one(stack, moe)
            if moe is not None and plan.exchange > 1:
                every += of_rows(moe, stack.length, plan, engine, once)
            if every:
                yield f"{of} first {'dense' if is_dense else 'MoE'} block", together(every)
