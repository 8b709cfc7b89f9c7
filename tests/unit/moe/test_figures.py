"""What a layer counts in a pass, and what a row makes of the sums."""

import math

import pytest
import torch
from tiny_model import context, with_padding

from moe_train.moe.figures import (
    HIGHEST_SQUARE,
    MEANS,
    TOTALS,
    capacity_use,
    drop_rate,
    experts_per_token,
    stats_of,
)
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouterFigures, Routing
from moe_train.monitor import balance

EXPERTS = 4
CHOICES = torch.tensor([[0, 3], [0, 1], [3, 0]])


def routing(figures: RouterFigures | None = None) -> Routing:
    """Three tokens of two experts each, with a loss."""
    weights = torch.full((3, 2), 0.5, requires_grad=True)
    loss = weights.sum()
    losses = {"losses": {"balance": loss}, "coefficients": {"balance": 0.1}}
    return table_routing(CHOICES, weights, EXPERTS, figures=figures, **losses)


def test_the_counts_of_a_pass_by_hand():
    assigned = routing(RouterFigures(*map(torch.tensor, (3.0, 1.5, 12.0, 6.0))))
    kept = assigned.keep(torch.tensor([True, True, False, True, True, False]))
    stats = stats_of(assigned, kept, context(1, 3), slots=8)
    assert {name: count.tolist() for name, count in stats.counts.items()} == {
        "load": [3, 1, 0, 2],
        "dropped": 2,
        "router_not_finite": 0,
        "tokens": 3,
        "slots": 8,
        "router_entropy": 3.0,
        "router_top_probability": 1.5,
        "router_z": 12.0,
        "router_logit_rms": 6.0,
    }
    assert stats.load is stats.counts["load"]
    assert not any(count.requires_grad for count in stats.counts.values())
    assert stats.losses["balance"].requires_grad
    assert stats.coefficients == {"balance": 0.1}


def test_padding_is_no_token_and_a_router_without_logits_has_no_figures():
    here = with_padding(context(1, 3), torch.tensor([[True, True, False]]))
    stats = stats_of(routing(), routing(), here)
    assert int(stats.counts["tokens"]) == 2
    assert float(stats.counts["router_entropy"]) == float(stats.counts["router_top_probability"]) == 0


def test_no_two_figures_of_a_row_share_a_name():
    names = [*(figure.name for figure in (*TOTALS, *MEANS)), *balance.FIGURES]
    assert len(set(names)) == len(names)


def test_shares_of_a_window_by_hand():
    assert drop_rate({"load": [6, 2], "dropped": 2}) == 0.25
    assert experts_per_token({"load": [6, 2], "dropped": 2, "tokens": 4}) == 1.5
    assert capacity_use({"load": [6, 2], "dropped": 2, "slots": 8}) == 0.75
    assert math.isnan(capacity_use({"load": [6, 2], "dropped": 0, "slots": 0}))


def test_squares_of_logits_have_a_ceiling_and_figures_that_are_no_numbers_are_counted():
    high = RouterFigures(*map(torch.tensor, (3.0, 1.5, 1e30, math.nan)))
    counts = stats_of(routing(high), routing(), context(1, 3)).counts
    assert counts["router_z"] == 3 * HIGHEST_SQUARE
    assert counts["router_logit_rms"] == 0
    assert counts["router_not_finite"] == 1


def test_a_window_with_a_router_that_was_not_finite_has_no_means_of_its_logits():
    counted = {"load": [6, 2], "dropped": 0, "tokens": 4, "slots": 8}
    counted |= {
        "router_entropy": 2.0,
        "router_top_probability": 2.0,
        "router_z": 16.0,
        "router_logit_rms": 4.0,
    }
    shown = {
        not_finite: {
            figure.name: figure.show(counted | {"router_not_finite": not_finite}) for figure in MEANS
        }
        for not_finite in (0, 1, math.nan)
    }
    assert shown[0]["router_z"] == 4
    assert shown[0]["router_logit_rms"] == 1
    assert shown[math.nan] == shown[0]  # an older checkpoint did not count it
    for name, value in shown[1].items():
        assert math.isnan(value) == name.startswith("router_"), name


@pytest.mark.parametrize("show", [figure.show for figure in MEANS], ids=[figure.name for figure in MEANS])
def test_a_window_without_tokens_has_no_means(show):
    nothing = {figure.name: 0 for figure in (*TOTALS, *MEANS)} | {"load": [0, 0]}
    assert math.isnan(show(nothing))
