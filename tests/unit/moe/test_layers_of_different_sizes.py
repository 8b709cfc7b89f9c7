"""Layers with different numbers of experts: every router serves each as in a model where all layers have that many."""

import pytest
import torch
from tiny_model import context, global_batch, tiny_recipe, tiny_transformer

from moe_train.config.registry import REGISTRY

OPTIONS = {"hierarchical_top_k": ("moe.router.num_groups=2", "moe.router.top_groups=1")}


def model_of(kind: str, experts: str):
    recipe = tiny_recipe(
        f"moe.num_experts={experts}",
        f"moe.router.kind={kind}",
        *OPTIONS.get(kind, ()),
        *("moe.capacity_factor=null", "moe.eval_capacity_factor=null"),
        *("model.architecture=encoder", "objective.kind=masked"),
    )
    return recipe, tiny_transformer(recipe)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", sorted(REGISTRY["moe.router"]))
@torch.no_grad()
def test_a_layer_works_as_among_layers_of_its_own_size(kind, training):
    recipe, pyramid = model_of(kind, "[4,8]")
    (_, of_4), (_, of_8) = model_of(kind, "4"), model_of(kind, "8")
    tokens = global_batch(recipe, 0).tokens
    about = context(*tokens.shape, training=training)
    logits, stats = pyramid(tokens, about)
    middle, first = of_4.layers[0](of_4.embedding(tokens).flatten(0, 1), None, about)
    top, second = of_8.layers[1](middle, None, about)
    expected = of_8.norm(top) @ of_8.embedding.weight.t()
    torch.testing.assert_close(logits.values, expected.view_as(logits.values))
    for layer, expected, experts in zip(stats, (first, second), (4, 8), strict=True):
        assert layer.load.tolist() == expected.load.tolist()
        assert len(layer.load) == experts
        assert {name: float(loss) for name, loss in layer.losses.items()} == pytest.approx(
            {name: float(loss) for name, loss in expected.losses.items()}
        )
