"""Parameters and FLOPs against sums written out by hand."""

import pytest

from moe_train.config.kinds.data import BPEConfig
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.config.resolve import spec_of
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, Recipe
from moe_train.model.count import count


@pytest.fixture
def recipe() -> Recipe:
    """4 layers of which 2 are MoE, width 8, hidden width 32, 300 tokens, sequences of 16, 4 experts."""
    return Recipe(
        model=ModelConfig(num_layers=4, d_model=8, num_heads=2),
        moe=MoEConfig(every=2, num_experts=4),
        data=DataConfig(sequence_length=16, tokenizer=BPEConfig(vocab_size=300)),
    )


def test_every_part_is_counted(recipe: Recipe) -> None:
    assert dict(count(spec_of(recipe)).parts) == {
        "embedding": 2400,  # 300 * 8
        "head": 0,
        "positions": 0,
        "attention": 1024,  # 4 layers * 4 matrices * 8 * 8
        "norms": 72,  # (2 * 4 + 1) * 8
        "feed_forward": 1024,  # 2 layers * 2 matrices * 8 * 32
        "router": 64,  # 2 layers * 8 * 4
        "shared_experts": 0,
        "experts": 4096,  # 2 layers * 4 experts * 2 matrices * 8 * 32
    }
    assert count(spec_of(recipe)).total_parameters == 8680


def test_a_token_meets_one_expert_in_each_layer(recipe: Recipe) -> None:
    assert count(spec_of(recipe)).active_parameters == 8680 - 4096 + 1024


def test_flops_are_three_forward_passes(recipe: Recipe) -> None:
    matrices = 2 * (1024 + 1024 + 64 + 1024 + 2400)  # attention, feed-forward, router, one expert, head
    attention = 4 * 16 * 8 * 4  # 4 * S * d, 4 layers
    assert count(spec_of(recipe)).flops_per_token(16) == 3 * (matrices + attention)


def test_top_2_doubles_the_active_experts(recipe: Recipe) -> None:
    recipe.moe.router = TopKRouterConfig(k=2)
    assert count(spec_of(recipe)).active_parameters == 8680 - 4096 + 2048


def test_a_dense_model_has_all_its_parameters_active(recipe: Recipe) -> None:
    recipe.moe.every = 0
    counted = count(spec_of(recipe))
    assert counted.parts["experts"] == counted.parts["router"] == 0
    assert counted.parts["feed_forward"] == 2048
    assert counted.active_parameters == counted.total_parameters == 2400 + 1024 + 72 + 2048


def test_switch_costs_what_its_dense_twin_costs_and_the_router(recipe: Recipe) -> None:
    switch = count(spec_of(recipe)).flops_per_token(16)
    recipe.moe.every = 0
    assert switch - count(spec_of(recipe)).flops_per_token(16) == 3 * 2 * 64


@pytest.mark.parametrize(("positions", "parameters"), [("learned", 128), ("relative", 64)])
def test_learned_positions_are_looked_up_for_free(recipe: Recipe, positions: str, parameters: int) -> None:
    before = count(spec_of(recipe))
    recipe.model.positions = positions  # type: ignore[assignment]
    after = count(spec_of(recipe))
    assert after.total_parameters - before.total_parameters == parameters
    assert after.flops_per_token(16) == before.flops_per_token(16)


def test_transformer_xls_positions_have_a_matrix_and_two_vectors_in_each_layer(recipe: Recipe) -> None:
    before = count(spec_of(recipe))
    recipe.model.positions = "transformer_xl"
    after = count(spec_of(recipe))
    assert after.parts["positions"] == 320  # 4 layers * (8 * 8 + 2 * 8)
    assert after.active_parameters - before.active_parameters == 320
    assert after.flops_per_token(16) - before.flops_per_token(16) == 3 * 2 * 16 * 8 * 4  # 2 * S * d, 4 layers


def test_an_untied_head_adds_parameters_but_no_flops(recipe: Recipe) -> None:
    tied = count(spec_of(recipe))
    recipe.model.tied_embeddings = False
    untied = count(spec_of(recipe))
    assert untied.parts["head"] == 2400
    assert untied.flops_per_token(16) == tied.flops_per_token(16)


def test_every_token_meets_the_shared_experts(recipe: Recipe) -> None:
    before = count(spec_of(recipe))
    recipe.moe.shared_experts, recipe.moe.d_ff = 2, 16
    after = count(spec_of(recipe))
    assert after.parts["shared_experts"] == 1024  # 2 layers * 2 matrices * 8 * 2 * 16
    assert after.parts["experts"] == 2048
    assert after.flops_per_token(16) - before.flops_per_token(16) == 3 * 2 * (1024 - 512)


def test_heads_may_be_wider_together_than_the_model(recipe: Recipe) -> None:
    before = count(spec_of(recipe))
    recipe.model.head_width = 12
    after = count(spec_of(recipe))
    assert after.parts["attention"] == 3072  # 4 layers * 4 matrices * 8 * (2 heads * 12)
    assert after.flops_per_token(16) - before.flops_per_token(16) == 3 * (2 * 2048 + 4 * 16 * (24 - 8) * 4)


def test_experts_may_be_gated_where_dense_blocks_are_not(recipe: Recipe) -> None:
    recipe.moe.activation, recipe.moe.shared_experts = "swiglu", 1
    counted = count(spec_of(recipe))
    assert counted.parts["feed_forward"] == 1024  # 2 layers * 2 matrices * 8 * 32
    assert counted.parts["shared_experts"] == 1536  # 2 layers * 3 matrices * 8 * 32
    assert counted.parts["experts"] == 6144


def test_the_first_layers_may_be_dense(recipe: Recipe) -> None:
    recipe.moe.every, recipe.moe.dense_first = 1, 1
    counted = count(spec_of(recipe))
    assert counted.parts["feed_forward"] == 512  # 1 layer * 2 matrices * 8 * 32
    assert counted.parts["experts"] == 6144  # 3 layers * 4 experts * 2 matrices * 8 * 32


def test_every_layer_may_have_its_own_number_of_experts(recipe: Recipe) -> None:
    recipe.moe.num_experts, recipe.moe.router = [1, 4], TopKRouterConfig(k=2)
    counted = count(spec_of(recipe))
    assert counted.parts["router"] == 40  # 8 * (1 + 4)
    assert counted.parts["experts"] == 2560  # (1 + 4) experts * 2 matrices * 8 * 32
    assert counted.active_parameters == counted.total_parameters - 2560 + 512 + 1024  # of 1 and of 4


@pytest.mark.parametrize("activation", ["swiglu", "geglu"])
def test_a_gated_activation_has_a_third_matrix(recipe: Recipe, activation: str) -> None:
    recipe.model.activation = activation  # type: ignore[assignment]
    counted = count(spec_of(recipe))
    assert counted.parts["feed_forward"] == 1536
    assert counted.parts["experts"] == 6144
