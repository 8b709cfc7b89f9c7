"""BASE and S-BASE: balanced in training, greedy in validation, weighed by a sigmoid."""

import pytest
import torch
from tiny_model import context, global_batch, moe_layer, normal, tiny_recipe, tiny_transformer

from moe_kernels.ops.assignment import balanced_assignment
from moe_train.config.check import problems
from moe_train.config.kinds.router.base import BaseRouterConfig
from moe_train.config.kinds.router.sinkhorn import SinkhornRouterConfig
from moe_train.config.notes import notes
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import Recipe
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.routers.base import BaseRouter
from moe_train.moe.routers.sinkhorn import SinkhornRouter

SEQUENCES, LENGTH, WIDTH, EXPERTS = 4, 32, 16, 8


def base(group: int = 1, experts: int = EXPERTS) -> BaseRouter:
    return filled(BaseRouter(BaseRouterConfig(), d_model=WIDTH, num_experts=experts, group=group, site=""))


def sinkhorn(**options) -> SinkhornRouter:
    config = SinkhornRouterConfig(**options)
    return filled(SinkhornRouter(config, d_model=WIDTH, num_experts=EXPERTS, group=1, site=""))


def filled(router):
    router.weight.data.copy_(
        normal(*router.weight.shape, seed=7) / 4 + normal(router.weight.shape[1], seed=8)
    )
    return router


def tokens() -> torch.Tensor:
    """Tokens that have something in common, so that they like the same experts."""
    return normal(SEQUENCES * LENGTH, WIDTH, seed=3) + 0.5


def loads(routing, groups: int) -> torch.Tensor:
    """Tokens of each expert in each group."""
    expert_ids = routing.expert_ids.view(groups, -1)
    return torch.nn.functional.one_hot(expert_ids, routing.num_experts).sum(1)


@pytest.mark.parametrize(("group", "share"), [(1, 4), (2, 8), (4, 16)])
def test_in_training_every_expert_has_its_share_of_every_group(group, share):
    routing = base(group)(tokens(), context(SEQUENCES, LENGTH, training=True))
    assert (loads(routing, SEQUENCES // group) == share).all()


def test_in_validation_every_token_takes_its_best_expert():
    for router in (base(), sinkhorn()):
        routing = router(tokens(), context(SEQUENCES, LENGTH))
        assert torch.equal(routing.expert_ids, (tokens() @ router.weight).argmax(1))
        assert loads(routing, SEQUENCES).max() > 8


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [base, sinkhorn])
def test_the_weight_is_the_sigmoid_of_the_token_s_own_score(make, training):
    router = make()
    routing = router(tokens(), context(SEQUENCES, LENGTH, training))
    scores = (tokens() @ router.weight).gather(1, routing.expert_ids.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(routing.weights, torch.sigmoid(scores))


def test_only_the_chosen_expert_s_embedding_has_a_gradient():
    router = base()
    routing = router(tokens(), context(SEQUENCES, LENGTH, training=True))
    (gradient,) = torch.autograd.grad(routing.weights[5], router.weight)
    moved = gradient.abs().sum(0) > 0
    assert moved.nonzero().flatten().tolist() == [int(routing.expert_ids[5])]


def test_with_one_expert_training_and_validation_are_the_same():
    router = base(experts=1)
    training, validation = (router(tokens(), context(SEQUENCES, LENGTH, flag)) for flag in (True, False))
    assert torch.equal(training.expert_ids, validation.expert_ids)
    assert torch.equal(training.weights, validation.weights)


def unlimited(kind: str) -> Recipe:
    return tiny_recipe(f"moe.router.kind={kind}", "moe.capacity_factor=null", "moe.eval_capacity_factor=null")


@pytest.mark.parametrize("kind", ["base", "sinkhorn"])
def test_a_sound_recipe_is_told_when_its_assignment_sees_later_tokens(kind):
    assert problems(unlimited(kind)) == []
    assert "validation is causal" in notes(unlimited(kind))[0]


def test_base_begins_as_the_identity_and_learns_from_there():
    layers = [layer for _, layer in moe_layers_of(tiny_transformer(unlimited("base")))]
    assert layers
    for layer in layers:
        y, stats = layer(normal(32, 32), context(2, 16, training=True))
        assert torch.equal(y, torch.zeros_like(y))
        assert int(stats.counts["dropped"]) == 0
        y.sum().backward()
        assert layer.experts.w_out.grad.any()


def test_base_begins_with_orthogonal_embeddings_of_experts():
    for _, layer in moe_layers_of(tiny_transformer(unlimited("base"))):
        weight = layer.router.weight
        torch.testing.assert_close(weight.t() @ weight, 0.01 * torch.eye(weight.shape[1]), atol=1e-7, rtol=0)


def test_sinkhorn_begins_like_any_layer():
    for _, layer in moe_layers_of(tiny_transformer(unlimited("sinkhorn"))):
        y, _ = layer(normal(32, 32), context(2, 16, training=True))
        assert y.any()


def test_sinkhorn_makes_loads_nearly_equal():
    greedy = loads(sinkhorn()(tokens(), context(SEQUENCES, LENGTH)), 1).float()
    balanced = loads(sinkhorn()(tokens(), context(SEQUENCES, LENGTH, training=True)), 1).float()
    assert balanced.std() / balanced.mean() < 0.2 < greedy.std() / greedy.mean()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("moe.capacity_factor=1", "does not apply: moe.router.kind=sinkhorn has no capacity limit"),
        ("moe.router.tolerance=0", "moe.router.tolerance=0.0: must be above 0"),
        ("moe.router.max_iterations=0", "moe.router.max_iterations=0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(override, sentence):
    sound = ("moe.router.kind=sinkhorn", "moe.capacity_factor=null", "moe.eval_capacity_factor=null")
    (problem,) = problems(tiny_recipe(*sound, override))
    assert sentence in str(problem)


@pytest.mark.parametrize("kind", sorted(REGISTRY["moe.router"]))
def test_the_router_scores_the_residual_stream_in_base_and_its_norm_everywhere_else(kind):
    seen: dict[str, torch.Tensor] = {}
    recipe = tiny_recipe(f"moe.router.kind={kind}")
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    block = model.blocks[0]
    block.feedforward_norm.weight.data.fill_(3.0)
    block.feedforward_norm.register_forward_hook(
        lambda _, inputs, output: seen.update(stream=inputs[0], normed=output)
    )
    block.feedforward.router.register_forward_pre_hook(lambda _, inputs: seen.update(scored=inputs[0]))
    model(batch.tokens, context(*batch.tokens.shape, training=True))
    assert torch.equal(seen["scored"], seen["stream" if kind == "base" else "normed"])
    assert not torch.allclose(seen["stream"], seen["normed"])


@pytest.mark.parametrize("training", [True, False])
def test_a_base_layer_is_the_formula_of_the_paper_with_all_its_gradients(training):
    """y = sigmoid(h . w_e) f_e(norm(h)), where h is the residual stream   # fairseq's base_layer.py."""
    layer = moe_layer(unlimited("base"))
    stream = normal(SEQUENCES * LENGTH, 32, seed=3).requires_grad_()
    rms = torch.nn.functional.rms_norm
    y, _ = layer(rms(stream, (32,)), context(SEQUENCES, LENGTH, training), stream)
    scores = stream @ layer.router.weight
    groups = scores.detach().view(SEQUENCES, LENGTH, -1)
    chosen = (balanced_assignment(groups).flatten() if training else scores.argmax(1)).long()
    expected = torch.stack(
        [
            torch.sigmoid(scores[token, expert])
            * (
                torch.relu(rms(stream[token], (32,)) @ layer.experts.w_in[expert])
                @ layer.experts.w_out[expert]
            )
            for token, expert in enumerate(chosen.tolist())
        ]
    )
    torch.testing.assert_close(y, expected)
    weights = [stream, *layer.parameters()]
    grad = normal(*y.shape, seed=4)
    for mine, wanted in zip(
        torch.autograd.grad(y, weights, grad), torch.autograd.grad(expected, weights, grad), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
