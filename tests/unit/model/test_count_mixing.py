"""Counts of routers whose layers have no edges, or more weights than logits, by hand and against real modules."""

import pytest
from tiny_model import flops_per_token, tiny_recipe

from moe_train.config.resolve import spec_of
from moe_train.model.count import count
from moe_train.model.transformer import build_on_meta

DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
EXPERT = 2 * 32 * 40
"""Weights of an expert of the tiny model, which has 2 layers, 8 experts and 16 tokens a sequence."""


def flops_beside(kind: str, *overrides: str) -> float:
    """Multiplications per token and layer of routing and experts: FLOPs less those of a model with one expert each."""
    random = flops_per_token(tiny_recipe("moe.router.kind=random", *DROPLESS))
    other = flops_per_token(tiny_recipe(f"moe.router.kind={kind}", *DROPLESS, *overrides))
    return (other - random) / (3 * 2 * 2) + EXPERT


@pytest.mark.parametrize(
    "overrides",
    [
        ("moe.router.kind=soft", "moe.router.slots_per_expert=3"),
        ("moe.router.kind=smear", "moe.router.segment=4"),
        ("moe.router.kind=reinforce",),
        ("moe.router.kind=hierarchical_top_k",),
    ],
)
def test_all_parameters_are_counted(overrides):
    spec = spec_of(tiny_recipe(*overrides, *DROPLESS))
    held = sum(parameter.numel() for parameter in build_on_meta(spec).parameters())
    assert count(spec).total_parameters == held


def test_soft_costs_its_slots_and_three_products_with_them():
    routed = flops_beside("soft", "moe.router.slots_per_expert=3")
    assert routed == pytest.approx(24 / 16 * EXPERT + 3 * 32 * 24)


@pytest.mark.parametrize(("segment", "tokens"), [("null", 16), ("4", 4)])
def test_smear_costs_an_expert_and_a_merge_of_all_that_a_segment_shares(segment, tokens):
    routed = flops_beside("smear", f"moe.router.segment={segment}")
    assert routed == pytest.approx(EXPERT + 8 * EXPERT / tokens + 32 * 8 / tokens, abs=0.1)


def test_hierarchical_costs_four_experts_and_four_matrices():
    assert flops_beside("hierarchical_top_k") == pytest.approx(4 * EXPERT + 2 * 32 * (8 + 4))
