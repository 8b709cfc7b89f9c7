"""Checks that tensor and sequence parallelism can cut a recipe's model: heads, widths and lengths."""

import math
from collections.abc import Iterator

from moe_train.config.divisors import choose_divisor
from moe_train.config.plan import ParallelPlan
from moe_train.config.problem import Problem
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe


def tensor_problems(recipe: Recipe, plan: ParallelPlan) -> Iterator[Problem]:
    """Yields problems of what tensor parallelism cuts; a vocabulary that the degree does not divide is padded."""
    spec = spec_of(recipe)
    cut = {"model.num_heads": spec.num_heads}
    if any(layer is None for stack in spec.stacks for layer in stack.layers):
        cut["model.d_ff"] = spec.d_ff
    if any(layer.shared_experts for layer in spec.moe):
        cut["moe.shared_experts * moe.d_ff"] = math.gcd(*(layer.shared_width for layer in spec.moe))
    if plan.sequence:
        cut |= {f"the {stack.name}'s sequence length": stack.length for stack in spec.stacks}
    for what, size in cut.items():
        if size % plan.tensor:
            separator = "=" if "." in what else " of "
            yield Problem(
                "parallel.tensor",
                plan.tensor,
                f"must divide {what}{separator}{size}",
                choose_divisor(math.gcd(*cut.values())),
            )
    if plan.sequence and plan.tensor == 1:
        yield Problem(
            "parallel.sequence",
            "true",
            "cuts sequences over the workers of a tensor group, of which parallel.tensor=1 leaves one",
            "set parallel.tensor=2 or more, or parallel.sequence=false",
        )
