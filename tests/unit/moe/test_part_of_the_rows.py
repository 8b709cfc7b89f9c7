"""A layer given a part of the rows does what it does with all of them, where those left out are padding.

The twin is the layer on full rows with padding wherever no row is, which test_padding.py holds against shorter batches.
"""

import pytest
import torch
from test_padding import UNLIMITED, layer_of, limits
from tiny_model import context, normal, with_padding
from torch import Tensor

from moe_train.config.registry import REGISTRY
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.policy import rewarded
from moe_train.moe.routing import RouteContext
from moe_train.results import MoEStats

SEQUENCES, LENGTH, WIDTH = 4, 8, 32
ROUTERS = sorted(REGISTRY["moe.router"])
HAS_ROW = torch.zeros(SEQUENCES, LENGTH, dtype=torch.bool)
HAS_ROW[0, [0, 2, 3, 7]] = True  # unequal numbers, with gaps; of the second sequence nothing
HAS_ROW[2] = True
HAS_ROW[3, [1, 4, 5]] = True
KEPT = HAS_ROW.flatten().nonzero().squeeze(1)


def part_of(whole: RouteContext, kept: Tensor = KEPT) -> RouteContext:
    return RouteContext(whole.forward_pass, whole.rows.only(kept))


def learned(layer: MoELayer, x: Tensor, y: Tensor, stats: MoEStats) -> dict[str, Tensor]:
    """Gradients of a loss of the rows' outputs and of all auxiliary losses, also of rewards."""
    layer.zero_grad()
    x.grad = None
    stats = rewarded(stats, normal(SEQUENCES * LENGTH, seed=8).abs())
    (y.square().sum() + sum(stats.losses.values())).backward()
    gradients = {name: weight.grad for name, weight in layer.named_parameters() if weight.grad is not None}
    return {"x": x.grad[KEPT], **gradients, **{f"loss {name}": loss for name, loss in stats.losses.items()}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ROUTERS)
def test_rows_get_what_they_get_beside_padding(kind, training):
    layer, whole = layer_of(kind, *limits(kind)), context(SEQUENCES, LENGTH, training)
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=3).requires_grad_()
    expected, stats = layer(x, with_padding(whole, HAS_ROW))
    if stats.policy is not None:
        places = {"places": KEPT, "log_probability": stats.policy.log_probability[KEPT]}
        stats = stats._replace(policy=stats.policy._replace(baseline=stats.policy.baseline[KEPT], **places))
    of_padded = learned(layer, x, expected[KEPT], stats)
    y, of_part = layer(x[KEPT], part_of(whole))
    torch.testing.assert_close(y, expected[KEPT])
    assert torch.equal(of_part.load, stats.load)
    assert int(of_part.counts["dropped"]) == int(stats.counts["dropped"])
    torch.testing.assert_close(of_part.counts["router_entropy"], stats.counts["router_entropy"])
    torch.testing.assert_close(
        of_part.counts["router_top_probability"], stats.counts["router_top_probability"]
    )
    gradients = learned(layer, x, y, of_part)
    assert gradients.keys() == of_padded.keys()
    for name, gradient in of_padded.items():
        torch.testing.assert_close(gradients[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_layer_without_any_row_still_takes_part(kind):
    layer, x = layer_of(kind, *limits(kind)), normal(0, WIDTH).requires_grad_()
    y, stats = layer(x, part_of(context(SEQUENCES, LENGTH, training=True), torch.arange(0)))
    (y.square().sum() + sum(stats.losses.values())).backward()
    assert y.shape == (0, WIDTH)
    assert not any(weight.grad.any() for weight in layer.parameters() if weight.grad is not None)
    assert all(loss.isfinite() for loss in stats.losses.values())


@pytest.mark.parametrize(
    "overrides",
    [
        ("moe.router.kind=switch", "moe.router.jitter=0.3", "moe.router.input_dropout=0.3"),
        ("moe.router.kind=switch", "moe.router.policy=sampling"),
        ("moe.router.kind=gshard", "moe.router.second_expert=random"),
        ("moe.router.kind=noisy_top_k",),
        ("moe.router.kind=random",),
        ("moe.router.kind=switch", "moe.expert_dropout=0.4"),
    ],
    ids=" ".join,
)
def test_a_row_draws_the_same_numbers_whatever_rows_are_beside_it(overrides):
    """Each token is routed by itself, without a limit: so what it gets can only change by its draws."""
    kind, *options = overrides
    layer, whole = layer_of(kind.partition("=")[2], *options, *UNLIMITED), context(SEQUENCES, LENGTH, True)
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=3)
    torch.testing.assert_close(layer(x[KEPT], part_of(whole))[0], layer(x, whole)[0][KEPT])
    site = whole.uniform("anywhere", 5)
    assert torch.equal(part_of(whole).uniform("anywhere", 5), site[KEPT])


def test_rows_of_one_group_do_not_take_the_slots_of_another():
    """One expert with two slots a sequence: 2 of 4 rows, none of none, 2 of 8 and 2 of 3 are served."""
    layer = layer_of(
        "switch", "moe.num_experts=1", "moe.capacity_factor=0.25", "moe.min_capacity=1", "moe.router.jitter=0"
    )
    whole = context(SEQUENCES, LENGTH, training=True)
    y, stats = layer(normal(SEQUENCES * LENGTH, WIDTH, seed=3)[KEPT], part_of(whole))
    assert (int(stats.load), int(stats.counts["dropped"])) == (15, 9)
    served = y.any(1).nonzero().squeeze(1)
    assert KEPT[served].tolist() == [0, 2, 16, 17, 25, 28]


def test_a_part_of_a_part_has_the_places_of_the_whole():
    whole = context(SEQUENCES, LENGTH).rows
    part = whole.only(KEPT).only(torch.tensor([1, 4, 12]))
    assert part.places.tolist() == KEPT[[1, 4, 12]].tolist()
    values = normal(3, 2)
    assert torch.equal(part.take(part.lay_out(values)), values)
    assert int(part.lay_out(values).any(2).sum()) == 3
