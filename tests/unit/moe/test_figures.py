"""What a layer counts in a pass, and what a row makes of the sums."""

import math

import pytest
import torch
from tiny_model import context, with_padding

from moe_train.moe.figures import MEANS, TOTALS, drop_rate, experts_per_token, stats_of
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import Routing, Spread
from moe_train.monitor import balance

EXPERTS = 4
CHOICES = torch.tensor([[0, 3], [0, 1], [3, 0]])


def routing(spread: Spread | None = None) -> Routing:
    """Three tokens of two experts each, with a loss."""
    weights = torch.full((3, 2), 0.5, requires_grad=True)
    loss = weights.sum()
    losses = {"losses": {"balance": loss}, "coefficients": {"balance": 0.1}}
    return table_routing(CHOICES, weights, EXPERTS, spread=spread, **losses)


def test_the_counts_of_a_pass_by_hand():
    assigned = routing(Spread(torch.tensor(3.0), torch.tensor(1.5)))
    kept = assigned.keep(torch.tensor([True, True, False, True, True, False]))
    stats = stats_of(assigned, kept, context(1, 3))
    assert {name: count.tolist() for name, count in stats.counts.items()} == {
        "load": [3, 1, 0, 2],
        "dropped": 2,
        "tokens": 3,
        "router_entropy": 3.0,
        "router_top_probability": 1.5,
    }
    assert stats.load is stats.counts["load"]
    assert not any(count.requires_grad for count in stats.counts.values())
    assert stats.losses["balance"].requires_grad
    assert stats.coefficients == {"balance": 0.1}


def test_padding_is_no_token_and_a_router_without_logits_has_no_spread():
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


@pytest.mark.parametrize("show", [figure.show for figure in MEANS], ids=[figure.name for figure in MEANS])
def test_a_window_without_tokens_has_no_means(show):
    nothing = {figure.name: 0 for figure in (*TOTALS, *MEANS)} | {"load": [0, 0]}
    assert math.isnan(show(nothing))
