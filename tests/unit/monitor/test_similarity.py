"""The most similar experts, against all pairs one by one."""

import itertools
import math

import pytest
import torch
from tiny_model import global_batch, one_worker, share_of, tiny_recipe, vocabulary

from moe_train.moe.layers.layer import moe_layers_of
from moe_train.monitor import similarity
from moe_train.step.training_step import TrainingStep


def made(*overrides):
    recipe = tiny_recipe(*overrides)
    step = TrainingStep.build(recipe, one_worker(), vocabulary(recipe))
    step.update(share_of(global_batch(recipe, 0), 0, 1), 0, False)
    return step


def weights_of(step, layer):
    """Each expert's weights as one vector."""
    experts = moe_layers_of(step.engine.model)[layer][1].experts
    return torch.cat([weight.detach().double().flatten(1) for weight in experts.parameters()], dim=1)


@pytest.mark.parametrize("at_once", [2**22, 1000])
@pytest.mark.parametrize("overrides", [(), ("moe.activation=swiglu",)])
def test_the_largest_cosine_is_that_of_all_pairs(overrides, at_once, monkeypatch):
    monkeypatch.setattr(similarity, "AT_ONCE", at_once)
    step = made(*overrides)
    figures = step.similarity()
    for layer in range(2):
        vectors = weights_of(step, layer)
        cosines = {
            pair: float(torch.cosine_similarity(*vectors[list(pair)], dim=0))
            for pair in itertools.combinations(range(len(vectors)), 2)
        }
        assert figures["expert_similarity"][layer] == pytest.approx(max(cosines.values()), abs=1e-6)
        assert tuple(figures["similar_experts"][layer]) == max(cosines, key=cosines.get)


def test_an_expert_that_is_there_twice_is_found_and_opposites_are_not_similar():
    step = made()
    experts = moe_layers_of(step.engine.model)[1][1].experts
    with torch.no_grad():
        for weight in experts.parameters():
            weight[6] = 3 * weight[2]
            weight[5] = -weight[1]
    figures = step.similarity()
    assert figures["expert_similarity"][1] == pytest.approx(1.0, abs=1e-6)
    assert figures["similar_experts"][1] == [2, 6]
    assert figures["expert_similarity"][0] < 0.5


def test_one_expert_is_similar_to_none_and_a_dense_model_has_no_figure():
    figures = made("moe.num_experts=1").similarity()
    assert all(map(math.isnan, figures["expert_similarity"]))
    assert figures["similar_experts"] == [[], []]
    assert made("moe.every=0").similarity() == {}


def test_experts_of_zeros_have_a_cosine_of_zero():
    step = made()
    for weight in moe_layers_of(step.engine.model)[0][1].experts.parameters():
        weight.data.zero_()
    assert step.similarity()["expert_similarity"][0] == 0
