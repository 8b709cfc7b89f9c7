"""What every router of the registry must keep to (docs/adding-a-router.md); a new one is tested by its line there."""

import math

import pytest
import torch
from tiny_model import TOKENS, context, normal, vocabulary_of

from moe_train.config.registry import REGISTRY, build
from moe_train.moe.routing import Routing, TableRouter
from moe_train.random import generator_for

SEQUENCES, LENGTH, WIDTH, EXPERTS = (
    3,
    7,
    12,
    8,
)  # prototypes divide the experts, and dselect_k wants a power of two
# Those of layers without edges are tested with their layers: test_layer_contract.py.
ROUTERS = sorted(name for name, kind in REGISTRY["moe.router"].items() if kind.layer is None)


def router(kind: str):
    config = REGISTRY["moe.router"][kind].config()
    made = build("moe.router", config, d_model=WIDTH, num_experts=EXPERTS, group=1, site="layers.0.router")
    for index, parameter in enumerate(made.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=index))
    if isinstance(made, TableRouter):
        made.table = made.make_table(vocabulary_of(TOKENS), generator_for(0, "table"))
    return made


def tokens() -> torch.Tensor:
    return normal(SEQUENCES * LENGTH, WIDTH, seed=50)


def assert_same_edges(one: Routing, other: Routing) -> None:
    for field in ("token_ids", "expert_ids", "choices", "weights"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("training", [True, False])
def test_edges_are_within_their_bounds_and_no_two_of_a_token_share_a_choice(kind, training):
    routing = router(kind)(tokens(), context(SEQUENCES, LENGTH, training))
    assert (routing.num_tokens, routing.num_experts) == (SEQUENCES * LENGTH, EXPERTS)
    for ids, bound in (
        (routing.token_ids, routing.num_tokens),
        (routing.expert_ids, routing.num_experts),
        (routing.choices, routing.num_choices),
    ):
        assert ids.dtype == torch.int64
        assert 0 <= int(ids.min()) <= int(ids.max()) < bound
    slots = routing.token_ids * routing.num_choices + routing.choices
    assert len(slots.unique()) == len(slots)
    edges = routing.token_ids * routing.num_experts + routing.expert_ids
    assert len(edges.unique()) == len(edges), "a token goes to an expert once"


@pytest.mark.parametrize("kind", ROUTERS)
def test_weights_and_losses_are_fp32_whatever_comes_in(kind):
    routing = router(kind)(tokens().bfloat16(), context(SEQUENCES, LENGTH, training=True))
    assert routing.losses.keys() == routing.coefficients.keys()
    for values in (routing.weights, *routing.losses.values()):
        assert values.dtype == torch.float32
        assert values.isfinite().all()
    assert all(loss.ndim == 0 for loss in routing.losses.values())
    if routing.entropy is not None:
        assert 0 <= float(routing.entropy) <= routing.num_tokens * math.log(EXPERTS) * 1.001
    assert (routing.top_probability is None) == (routing.entropy is None)
    if routing.top_probability is not None:
        assert not routing.top_probability.requires_grad
        assert 1 <= float(routing.top_probability) * EXPERTS / routing.num_tokens <= EXPERTS


@pytest.mark.parametrize("kind", ROUTERS)
def test_nothing_is_random_in_validation_and_draws_repeat_in_training(kind):
    made, x = router(kind), tokens()
    validation = made(x, context(SEQUENCES, LENGTH, training=False))
    assert_same_edges(validation, made(x, context(SEQUENCES, LENGTH, training=False, step=9, seed=4)))
    before = torch.get_rng_state()
    first = made(x, context(SEQUENCES, LENGTH, training=True, step=3))
    assert_same_edges(first, made(x, context(SEQUENCES, LENGTH, training=True, step=3)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_is_routed_the_same_wherever_it_is(kind, training):
    made, x = router(kind), tokens()
    together = made(x, context(SEQUENCES, LENGTH, training))
    for sequence in range(SEQUENCES):
        start = sequence * LENGTH
        alone = made(x[start : start + LENGTH], context(1, LENGTH, training, first=sequence))
        mine = together.keep(together.token_ids // LENGTH == sequence)
        torch.testing.assert_close(alone.token_ids + start, mine.token_ids)
        torch.testing.assert_close(alone.expert_ids, mine.expert_ids)
        torch.testing.assert_close(alone.weights, mine.weights)
