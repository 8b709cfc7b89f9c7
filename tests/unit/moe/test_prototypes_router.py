"""k top-1: one prototype is Switch, as many as experts are all experts, and two by hand."""

import math

import pytest
import torch
from tiny_model import context, gate, normal

from moe_train.config.kinds.router.prototypes import PrototypesRouterConfig
from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.notes import notes
from moe_train.config.schema import Recipe

T, E = 12, 6


def routed(prototypes: int, logits: torch.Tensor):
    made = gate(PrototypesRouterConfig(prototypes=prototypes), logits)
    return made(torch.eye(len(logits)), context(1, len(logits)))


def test_one_prototype_is_switch():
    logits = normal(T, E)
    mine = routed(1, logits)
    switch = gate(SwitchRouterConfig(), logits)(torch.eye(T), context(1, T))
    assert torch.equal(mine.expert_ids, switch.expert_ids)
    torch.testing.assert_close(mine.weights, switch.weights)
    torch.testing.assert_close(mine.figures.entropy, switch.figures.entropy)
    for name in ("balance", "z"):
        torch.testing.assert_close(mine.losses[name], switch.losses[name])


def test_as_many_prototypes_as_experts_use_all_with_weight_one():
    routing = routed(E, normal(T, E))
    assert torch.equal(routing.expert_ids.view(T, E), torch.arange(E).expand(T, E))
    assert torch.equal(routing.weights, torch.ones(T * E))


def test_two_prototypes_by_hand():
    # Prototype 0 has experts 0..2, prototype 1 the experts 3..5; a softmax in each.
    routing = routed(2, torch.tensor([[math.log(2), 0.0, 0.0, 0.0, 0.0, math.log(3)]]))
    assert routing.expert_ids.tolist() == [0, 5]
    assert routing.choices.tolist() == [0, 1]
    torch.testing.assert_close(routing.weights, torch.tensor([0.5, 0.6]))
    # (E/k) sum f P = 3 * .5 + 3 * .6
    assert routing.losses["balance"].item() == pytest.approx(3.3)
    assert routing.losses["z"].item() == pytest.approx(math.log(4) ** 2 + math.log(5) ** 2)


def test_prototypes_must_divide_the_experts():
    recipe = Recipe()
    recipe.moe.router = PrototypesRouterConfig(prototypes=3)
    [problem] = recipe.moe.router.check(recipe)
    assert str(problem).startswith("moe.router.prototypes=3: must divide moe.num_experts=8")


def test_choices_of_different_prototypes_never_compete_for_a_slot():
    recipe = Recipe()
    recipe.moe.router = PrototypesRouterConfig(prototypes=2)
    recipe.moe.capacity_convention = "deepspeed"
    assert notes(recipe) == []
