"""The norms of a router's and an expert's gradients, against the gradients themselves."""

import math

import pytest
import torch
from tiny_model import global_batch, one_worker, share_of, tiny_recipe, vocabulary

from moe_train.moe.layers.layer import moe_layers_of
from moe_train.step.training_step import TrainingStep

ROUTERS = {
    "switch": (),
    "noisy_top_k": (),
    "hash": (),
    "smear": ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", "moe.router.segment=4"),
}


def measured(detail, *overrides):
    """The figures of an update, and the step that made it."""
    recipe = tiny_recipe(*overrides)
    step = TrainingStep.build(recipe, one_worker(), vocabulary(recipe))
    return step.update(share_of(global_batch(recipe, 0), 0, 1), 0, False, detail=detail).gradients, step


@pytest.mark.parametrize("kind", ROUTERS)
def test_norms_are_those_of_the_gradients_before_clipping(kind):
    figures, step = measured("full", f"moe.router.kind={kind}", *ROUTERS[kind], "optim.clip=null")
    for layer, (_, module) in enumerate(moe_layers_of(step.engine.model)):
        weights = list(module.experts.parameters())
        for expert in range(module.spec.num_experts):
            parts = [weight.grad[expert].double().flatten() for weight in weights]
            expected = float(torch.cat(parts).norm())
            assert figures["expert_gradient_norm"][layer][expert] == pytest.approx(
                expected, rel=1e-6, abs=1e-30
            )
        of_router = [parameter.grad.double().flatten() for parameter in module.router.parameters()]
        norm = figures["router_gradient_norm"][layer]
        if of_router:
            assert norm == pytest.approx(float(torch.cat(of_router).norm()), rel=1e-6, abs=1e-30)
        else:
            assert math.isnan(norm)


def test_clipping_changes_no_figure():
    unclipped, _ = measured("full", "optim.clip=null")
    clipped, _ = measured("full", "optim.clip=1e-3")
    assert clipped == unclipped


def test_what_is_not_asked_for_is_not_measured():
    assert measured("off")[0] == {}
    assert measured("brief")[0].keys() == {"router_gradient_norm"}
