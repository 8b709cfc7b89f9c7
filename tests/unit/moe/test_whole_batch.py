"""A balance loss of the global batch has one value and one gradient, however the batch is cut into shares."""

import pytest
import torch
from threaded_ranks import ThreadAxis, run_ranks
from tiny_model import context, normal, with_padding

from moe_train.config.kinds.router.router import BalanceLossConfig
from moe_train.config.registry import REGISTRY, build
from moe_train.moe.routing import Routing
from moe_train.moe.whole_batch import batch_sums, of_whole_batch
from moe_train.parallel.axis import Axis
from moe_train.parallel.world import World
from moe_train.results import MoEStats

SEQUENCES, LENGTH, WIDTH, EXPERTS = 6, 7, 12, 8
REAL = torch.arange(LENGTH) < torch.tensor([[5], [7], [0], [2], [7], [1]])
KINDS = sorted(
    name for name, kind in REGISTRY["moe.router"].items() if issubclass(kind.config, BalanceLossConfig)
)
SPLITS = [(6,), (3, 3), (2, 2, 2), (1, 1, 1, 1, 1, 1), (1, 2, 3)]
"""Sequences of each share."""


def router(kind: str, over: str, group: int = 1):
    config = REGISTRY["moe.router"][kind].config(balance_over=over, balance_coefficient=1.0)
    made = build(
        "moe.router", config, d_model=WIDTH, num_experts=EXPERTS, group=group, site="layers.0.router"
    )
    for index, parameter in enumerate(made.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=index))
    return made


def routed(made, first: int, sequences: int, is_padded: bool) -> Routing:
    """What the router makes of `sequences` of all sequences, from `first` on, in training."""
    rows = normal(SEQUENCES * LENGTH, WIDTH, seed=50)[first * LENGTH : (first + sequences) * LENGTH]
    here = context(sequences, LENGTH, training=True, first=first)
    if is_padded:
        here = with_padding(here, REAL[first : first + sequences])
    return made(rows, here)


def stats_of(routing: Routing) -> MoEStats:
    return MoEStats(
        counts={},
        losses=dict(routing.losses),
        coefficients=dict(routing.coefficients),
        batch_losses=dict(routing.batch_losses),
    )


def gradients(made, loss: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(made.parameters()), allow_unused=True, retain_graph=True)
    pairs = zip(found, made.parameters(), strict=True)
    return [torch.zeros_like(weight) if grad is None else grad for grad, weight in pairs]


def shares_of(made, split: tuple[int, ...], is_padded: bool) -> list[MoEStats]:
    starts = [sum(split[:index]) for index in range(len(split))]
    return [
        stats_of(routed(made, first, count, is_padded)) for first, count in zip(starts, split, strict=True)
    ]


def assert_close(mine: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(
        mine, wanted, rtol=1e-5, atol=2e-6 * max(float(wanted.detach().abs().max()), 0.1)
    )


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_shares_have_the_value_and_on_average_the_gradient_of_the_whole_batch(kind, split, is_padded):
    made = router(kind, "batch")
    whole = routed(made, 0, SEQUENCES, is_padded)
    assert whole.batch_losses.keys() >= {"balance"}
    shares = shares_of(made, split, is_padded)
    (sums,) = batch_sums(Axis(), [(stats,) for stats in shares], num_passes=1)
    done = [of_whole_batch((stats,), sums, len(shares))[0] for stats in shares]
    for name in whole.batch_losses:
        assert all(stats.losses[name] == done[0].losses[name] for stats in done)
        assert_close(done[0].losses[name], whole.losses[name])
        if not whole.losses[name].requires_grad:
            continue
        of_shares = [gradients(made, stats.losses[name]) for stats in done]
        for parts, wanted in zip(
            zip(*of_shares, strict=True), gradients(made, whole.losses[name]), strict=True
        ):
            assert_close(torch.stack(parts).mean(0), wanted)


@pytest.mark.parametrize("kind", ["noisy_top_k", "switch"])
def test_a_share_alone_is_not_the_batch(kind):
    """Without the batch's sums the mean over shares is another loss: what the test above must tell apart."""
    made = router(kind, "batch")
    whole, shares = routed(made, 0, SEQUENCES, False), shares_of(made, (2, 2, 2), False)
    for name in whole.batch_losses:
        mean = torch.stack([stats.losses[name] for stats in shares]).mean()
        assert abs(float((mean / whole.losses[name]).detach()) - 1) > 0.01


def sums_on_a_rank(world: World) -> torch.Tensor:
    made = router("hierarchical_top_k", "batch")
    mine = [(stats,) for stats in shares_of(made, (1, 2, 1, 2), True)[2 * world.rank : 2 * world.rank + 2]]
    return batch_sums(ThreadAxis(world), mine, num_passes=1)


def test_sums_are_those_of_all_ranks():
    alone = shares_of(router("hierarchical_top_k", "batch"), (6,), True)
    expected = batch_sums(Axis(), [tuple(alone)], num_passes=1)
    for sums in run_ranks(2, sums_on_a_rank):
        torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-5)


def test_every_pass_has_sums_of_its_own():
    made = router("switch", "batch")
    of_share = [(stats,) for stats in shares_of(made, (2, 4), False)]
    once = batch_sums(Axis(), of_share, num_passes=1)
    twice = batch_sums(Axis(), [of_share[0], of_share[1], of_share[1], of_share[0]], num_passes=2)
    torch.testing.assert_close(twice, once.expand(2, -1))


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("over", "size"), [("sequence", 1), ("group", 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_over_sequences_or_groups_it_is_the_mean_of_theirs(kind, over, size, is_padded):
    routing = routed(router(kind, over, group=2), 0, SEQUENCES, is_padded)
    assert not routing.batch_losses
    made = router(kind, "batch")
    alone = [routed(made, first, size, is_padded) for first in range(0, SEQUENCES, size)]
    for name in alone[0].batch_losses:
        mean = torch.stack([one.losses[name] for one in alone]).mean()
        torch.testing.assert_close(routing.losses[name], mean, rtol=1e-5, atol=1e-6)


def test_switchs_loss_is_that_of_the_papers_sums_over_all_real_tokens():
    routing = routed(router("switch", "batch"), 0, SEQUENCES, is_padded=True)
    made, total, load = router("switch", "batch"), torch.zeros(EXPERTS), torch.zeros(EXPERTS)
    rows = normal(SEQUENCES * LENGTH, WIDTH, seed=50)
    jitter = context(SEQUENCES, LENGTH, training=True).uniform("layers.0.router.jitter", WIDTH)
    rows = rows * (0.99 + 0.02 * jitter.view_as(rows))
    for row in rows[REAL.flatten()]:
        probabilities = torch.softmax(row @ made.weight.detach(), 0)
        total += probabilities
        load[probabilities.argmax()] += 1
    expected = EXPERTS * sum(load / load.sum() * total / load.sum())
    torch.testing.assert_close(routing.losses["balance"].detach(), expected)
