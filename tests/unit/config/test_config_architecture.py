"""Which objective trains which model, and which routers serve it: said before anything starts."""

import pytest
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.notes import notes
from moe_train.config.registry import REGISTRY
from moe_train.config.resolve import spec_of

SPANS = ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=4")
MASKED = ("model.architecture=encoder", "objective.kind=masked")
UNLIMITED = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
LEAKING = sorted(kind for kind, of in REGISTRY["moe.router"].items() if of.config().sees_later_tokens)


def said(*overrides: str) -> list[str]:
    return [str(problem) for problem in problems(tiny_recipe(*overrides))]


@pytest.mark.parametrize(
    "overrides", [SPANS, MASKED, (*SPANS, "moe.stacks=encoder", "model.num_encoder_layers=3")]
)
def test_models_with_encoders_are_sound(overrides):
    assert said(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("model.architecture=encoder",),
            "model.architecture=encoder: cannot be trained by objective.kind=language, which needs decoder; "
            "set model.architecture=decoder",
        ),
        (("objective.kind=masked",), "cannot be trained by objective.kind=masked, which needs encoder;"),
        (("objective.kind=span_corruption",), "which needs encoder_decoder;"),
        (
            ("model.num_encoder_layers=2",),
            "model.num_encoder_layers=2: applies only to model.architecture=encoder_decoder",
        ),
        (
            (*MASKED, "moe.stacks=encoder"),
            "moe.stacks=encoder: applies only to model.architecture=encoder_decoder",
        ),
        ((*SPANS, "model.num_encoder_layers=0"), "model.num_encoder_layers=0: must be above 0"),
        ((*SPANS, "moe.every=3"), "moe.every=3: is above model.num_layers=2"),
        (
            (*SPANS, "moe.every=3", "model.num_encoder_layers=3", "moe.stacks=decoder"),
            "moe.every=3: is above model.num_layers=2",
        ),
        ((*MASKED, "objective.rate=0"), "objective.rate=0.0: must be between 0 and 1"),
        ((*MASKED, "objective.masked_share=2"), "objective.masked_share=2.0: must be in [0, 1]"),
        (
            (*MASKED, "objective.random_share=0.5"),
            "must be at most 1 together with objective.masked_share=0.8",
        ),
        ((*SPANS, "objective.rate=1"), "objective.rate=1.0: must be between 0 and 1"),
        ((*SPANS, "objective.mean_span=0.5"), "objective.mean_span=0.5: must be at least 1"),
        (
            (*SPANS, "data.sequence_length=128"),
            "objective.sentinels=4: must be at least the 6 spans of a sequence of data.sequence_length=128",
        ),
        (
            (*SPANS, "objective.rate=0.9", "objective.mean_span=1", "objective.sentinels=99"),
            "leaves 2 tokens for 14 spans, each of which needs one before it",
        ),
    ],
)
def test_a_broken_rule_is_said(overrides, sentence):
    assert any(sentence in problem for problem in said(*overrides)), said(*overrides)


@pytest.mark.parametrize("kind", LEAKING)
def test_a_router_that_sees_later_tokens_serves_encoders_alone(kind):
    router = (f"moe.router.kind={kind}", *UNLIMITED)
    assert said(*MASKED, *router) == []
    assert said(*SPANS, *router, "moe.stacks=encoder") == []
    for overrides, way_out in (
        ((), ""),
        (SPANS, "or moe.stacks=encoder"),
        ((*SPANS, "moe.stacks=decoder"), ""),
    ):
        found = said(*overrides, *router)
        assert any(
            f"moe.router.kind={kind}: routes a token by later tokens too" in problem for problem in found
        )
        assert way_out in "".join(found)


def test_the_stacks_of_a_model_and_their_moe_layers_counted_on():
    recipe = tiny_recipe(*SPANS, "model.num_layers=4", "model.num_encoder_layers=3", "moe.every=2")
    encoder, decoder = spec_of(recipe).stacks
    assert (encoder.moe_layers, decoder.moe_layers) == ((1,), (1, 3))
    assert (encoder.is_causal, decoder.is_causal) == (False, True)
    assert (encoder.length, decoder.length) == (16, 4)  # 2 of 16 tokens cut out, in one span
    assert spec_of(recipe).moe_layers == [1, 4, 6]
    assert spec_of(recipe).vocabulary_size == 304


def test_second_choices_matter_to_causal_stacks_alone():
    top_2 = ("moe.router.kind=gshard",)
    assert any("null keeps the model causal" in note for note in notes(tiny_recipe(*top_2)))
    for overrides in (MASKED, (*SPANS, "moe.stacks=encoder")):
        assert not any("causal" in note for note in notes(tiny_recipe(*overrides, *top_2)))
