"""DeepSeek's gate against megatron-core and by hand; the bias that evens out loads."""

import warnings

import pytest
import torch
from tiny_model import context, gate, global_batch, normal, one_worker, share_of, tiny_recipe

from moe_train.config.kinds.router.deepseek import DeepSeekRouterConfig
from moe_train.config.schema import Recipe
from moe_train.step.training_step import TrainingStep

T, E = 32, 8


@pytest.fixture(scope="module")
def megatron():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.transformer.moe import moe_utils
    return moe_utils


def routed(config: DeepSeekRouterConfig, logits: torch.Tensor, bias: torch.Tensor | None = None):
    made = gate(config, logits)
    if bias is not None:
        made.bias.copy_(bias)
    return made(torch.eye(len(logits)), context(1, len(logits)))


def dense(routing) -> torch.Tensor:
    weights = torch.zeros(routing.num_tokens, routing.num_experts)
    return weights.index_put((routing.token_ids, routing.expert_ids), routing.weights.detach())


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (2, 1)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_biased_grouped_sigmoid_routing_agrees_with_megatron(megatron, groups, scale):
    logits, bias = normal(T, E), 0.3 * normal(E, seed=1)
    config = DeepSeekRouterConfig(k=4, num_groups=groups[0], top_groups=groups[1], weight_scale=scale)
    expected, chosen = megatron.topk_routing_with_score_function(
        logits,
        4,
        num_groups=groups[0] if groups[0] > 1 else None,
        group_topk=groups[1] if groups[0] > 1 else None,
        scaling_factor=scale,
        score_function="sigmoid",
        expert_bias=bias,
    )
    mine = dense(routed(config, logits, bias))
    torch.testing.assert_close(mine, expected)
    assert torch.equal(mine > 0, chosen)


def test_softmax_scores_are_not_renormalised_in_the_first_version(megatron):
    logits = normal(T, E)
    config = DeepSeekRouterConfig(k=3, scores="softmax", normalize=False, bias_rate=0.0)
    expected, _ = megatron.topk_routing_with_score_function(logits, 3, use_pre_softmax=True)
    torch.testing.assert_close(dense(routed(config, logits)), expected)


def test_the_balance_loss_agrees_with_megatron_whatever_the_bias(megatron):
    logits = normal(T, E)
    config = DeepSeekRouterConfig(k=3, balance_coefficient=1e-4)
    chosen, scores = megatron.compute_routing_scores_for_aux_loss(logits, 3, "sigmoid")
    expected = megatron.switch_load_balancing_loss_func(
        probs=scores,
        tokens_per_expert=chosen.sum(0),
        total_num_tokens=T,
        topk=3,
        num_experts=E,
        moe_aux_loss_coeff=1.0,
    )
    routing = routed(config, logits, torch.arange(E) * 0.1)
    torch.testing.assert_close(routing.losses["balance"], expected)
    assert routing.coefficients == {"balance": 1e-4, "z": 0.0}


def test_the_balance_of_groups_is_that_of_the_paper_by_hand():
    """f = 4/3 * (1, 2, 0, 0), P = (.3, .4, .1, .2): groups of two have f' = (2, 0) and P' = (.7, .3), so 1.4."""
    logits = torch.tensor([[0.3, 0.4, 0.1, 0.2]]).log().expand(3, 4).clone()
    logits[0] = torch.tensor([0.4, 0.3, 0.1, 0.2]).log()
    logits[1:] = torch.tensor([0.25, 0.45, 0.1, 0.2]).log()
    config = DeepSeekRouterConfig(
        k=1, scores="softmax", normalize=False, num_groups=2, top_groups=2, group_balance_coefficient=0.05
    )
    routing = routed(config, logits)
    assert routing.expert_ids.tolist() == [0, 1, 1]
    assert routing.losses["group_balance"].item() == pytest.approx(1.4)
    assert routing.coefficients == {"balance": 0.0, "group_balance": 0.05, "z": 0.0}


def test_the_balance_of_groups_of_one_expert_is_that_of_experts_and_collapse_is_the_number_of_groups():
    logits = normal(T, E)
    both = {"balance_coefficient": 1e-3, "group_balance_coefficient": 1e-2, "num_groups": 8, "top_groups": 8}
    losses = routed(DeepSeekRouterConfig(k=3, **both), logits).losses
    torch.testing.assert_close(losses["group_balance"], losses["balance"])
    first_group = torch.tensor([50.0, 50.0] + [-50.0] * 6).expand(T, E)
    config = DeepSeekRouterConfig(k=2, **both | {"num_groups": 4, "top_groups": 4})
    assert routed(config, first_group).losses["group_balance"].item() == pytest.approx(4)


def test_as_many_groups_as_there_are_is_no_limit():
    logits, bias = normal(T, E), 0.3 * normal(E, seed=1)
    free, grouped = (
        routed(DeepSeekRouterConfig(k=3, num_groups=groups, top_groups=groups), logits, bias)
        for groups in (1, 4)
    )
    assert torch.equal(dense(free), dense(grouped))


def test_the_bias_chooses_but_does_not_weigh():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    plain = routed(DeepSeekRouterConfig(), logits)
    lifted = routed(DeepSeekRouterConfig(), logits, torch.tensor([0.4, 0.3, 0.0, 0.0]))
    assert plain.expert_ids.tolist() == lifted.expert_ids.tolist() == [0, 1]
    assert torch.equal(plain.weights, lifted.weights)
    moved = routed(DeepSeekRouterConfig(), logits, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert moved.expert_ids.tolist() == [3, 0]
    scores = torch.sigmoid(torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(moved.weights, scores / scores.sum())


def test_a_bias_moves_by_its_rate_towards_the_mean_load_and_stays_at_it():
    made = gate(DeepSeekRouterConfig(bias_rate=0.5), torch.zeros(1, 4))
    made.after_update(torch.tensor([4, 4, 4, 4]))
    assert made.bias.tolist() == [0.0] * 4
    made.after_update(torch.tensor([9, 1, 4, 2]))  # mean 4
    assert made.bias.tolist() == [-0.5, 0.5, 0.0, 0.5]
    made.after_update(torch.tensor([2**40 + 1, 2**40 - 1, 2**40, 2**40]))  # floats would see equal loads
    assert made.bias.tolist() == [-1.0, 1.0, 0.0, 0.5]


def test_updates_even_out_the_loads_of_fixed_scores():
    logits = normal(512, 8) + torch.linspace(-2, 2, 8)
    made, seen = gate(DeepSeekRouterConfig(k=2, bias_rate=0.01), logits), context(1, 512)

    def load() -> torch.Tensor:
        return torch.bincount(made(torch.eye(512), seen).expert_ids, minlength=8)

    def cv(counts: torch.Tensor) -> float:
        return float(counts.double().std(correction=0) / counts.double().mean())

    before = cv(load())
    for _ in range(200):
        made.after_update(load())
    assert before > 0.7
    assert cv(load()) < 0.1


def test_the_bias_follows_training_is_saved_and_stands_still_in_validation():
    recipe = tiny_recipe("moe.router.kind=deepseek", "moe.shared_experts=1")
    training_step = TrainingStep.build(recipe, one_worker())
    engine = training_step.engine
    biases = [layer.feedforward.router.bias for layer in engine.model.layers]
    assert all(torch.equal(bias, torch.zeros(8)) for bias in biases)
    batch = global_batch(recipe, 0)
    training_step.evaluate([batch], 0)
    assert all(torch.equal(bias, torch.zeros(8)) for bias in biases)
    result = training_step.update(share_of(batch, 0, 1, 4), 0, False)
    for layer, bias in enumerate(biases):
        load = sum(micro[layer].load for micro in result.stats)
        torch.testing.assert_close(bias, 0.001 * torch.sign(load.double().mean() - load).float())
        assert bias.any()
        (saved,) = engine.state()[f"model.layers.{layer}.feedforward.router.bias"]
        assert saved.data.data_ptr() == bias.data_ptr()
        assert saved.global_shape == (8,)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (DeepSeekRouterConfig(k=9), "moe.router.k"),
        (DeepSeekRouterConfig(k=1), "moe.router.normalize"),
        (DeepSeekRouterConfig(num_groups=3), "moe.router.num_groups"),
        (DeepSeekRouterConfig(num_groups=4, top_groups=5, k=5), "moe.router.top_groups"),
        (DeepSeekRouterConfig(num_groups=4, top_groups=2, k=3), "moe.router.top_groups"),
        (DeepSeekRouterConfig(num_groups=4, top_groups=1, k=4), "moe.router.top_groups"),
        (DeepSeekRouterConfig(group_balance_coefficient=0.1), "moe.router.group_balance_coefficient"),
        (DeepSeekRouterConfig(bias_rate=-1.0), "moe.router.bias_rate"),
        (DeepSeekRouterConfig(weight_scale=0.0), "moe.router.weight_scale"),
        (DeepSeekRouterConfig(weight_scale=-1.0), "moe.router.weight_scale"),
    ],
)
def test_what_cannot_serve_a_recipe_says_why(config, key):
    recipe = Recipe()
    recipe.moe.router = config
    assert [problem.key for problem in config.check(recipe)] == [key]


def test_the_range_of_the_biases_is_shown():
    made = gate(DeepSeekRouterConfig(k=1), normal(T, E))
    made.bias.copy_(torch.linspace(-0.25, 0.5, E))
    assert {name: float(value) for name, value in made.gauges(0).items()} == {"bias_range": 0.75}
