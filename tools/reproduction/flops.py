"""What a run cost in FLOPs, with the experts that its tokens really had.

The formula is moe_train/model/count.py's; it counts the number of experts that the router's recipe promises. Where
that number varies over the run (Dense-to-Sparse) or tokens are dropped, the expert's part is counted by assignment.
"""

from dataclasses import dataclass

from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.model.count import count

TRAINING_PASSES = 3
"""A forward pass, and a backward pass that costs two."""


@dataclass(frozen=True)
class FlopAccount:
    """Training FLOPs of a recipe, all passes of its objective counted."""

    per_token: int
    """Of one token with as many experts as the recipe promises."""
    per_token_without_experts: int
    """Of one token, routers counted, that reaches no routed expert."""
    per_assignment: int
    """Of one token in one expert of one layer and pass."""

    def spent(self, tokens: int, assignments: int) -> int:
        """Of `tokens` tokens and of `assignments` served by experts, over all layers and passes."""
        return tokens * self.per_token_without_experts + assignments * self.per_assignment


def account(recipe: Recipe) -> FlopAccount:
    """The FLOPs of `recipe`."""
    spec, passes = spec_of(recipe), recipe.objective.num_passes
    size, num_experts = count(spec), spec.num_experts
    per_token = size.flops_per_token(recipe.data.sequence_length, passes)
    if not num_experts:
        return FlopAccount(per_token, per_token, 0)
    of_expert = size.parts["experts"] // sum(num_experts)
    per_assignment = TRAINING_PASSES * 2 * of_expert
    chosen = sum(min(recipe.moe.router.num_choices, number) for number in num_experts)
    promised = chosen * passes
    return FlopAccount(per_token, per_token - promised * per_assignment, per_assignment)


def planned(recipe: Recipe) -> int:
    """Training FLOPs of the whole run if every token has as many experts as the recipe promises."""
    return account(recipe).per_token * recipe.data.sequence_length * recipe.data.global_batch * recipe.steps
