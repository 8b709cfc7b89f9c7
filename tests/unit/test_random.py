"""Draws that depend on where they are used, and on nothing else."""

import pytest
import torch

from moe_train.random import RandomStream, generator_for


def draws(site="layers.0.router.jitter", shape=(64, 64), seed=0, step=0, ids=(0, 1, 2, 3)):
    return RandomStream(seed, step).uniform(site, torch.tensor(ids), *shape)


def test_draws_never_change_between_versions():
    """A resume must see the numbers that the interrupted run would have seen."""
    drawn = RandomStream(7, 11).uniform("embedding", torch.tensor([0, 5]), 3)
    assert (drawn * 2**24).long().tolist() == [[4154842, 5813240, 11003509], [10350183, 4436471, 9171379]]


def test_draws_are_uniform_in_the_half_open_unit_interval():
    drawn = draws()
    assert 0 <= drawn.min() < 0.001 < 0.999 < drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=0.005)
    counts = torch.histc(drawn, bins=16, min=0, max=1)
    assert (counts - drawn.numel() / 16).abs().max() < 5 * (drawn.numel() / 16) ** 0.5


def test_the_other_sequences_of_a_batch_do_not_matter():
    together = draws(ids=(3, 9, 4))
    assert torch.equal(draws(ids=(4,))[0], together[2])
    assert torch.equal(draws(ids=(9, 3))[0], together[1])


@pytest.mark.parametrize(
    "other",
    [
        {"site": "layers.2.router.jitter"},
        {"seed": 1},
        {"step": 1},
        {"ids": (4, 5, 6, 7)},
        {"ids": (2**31, 2**32, 2**33, 2**40)},
    ],
    ids=str,
)
def test_every_coordinate_makes_other_draws(other):
    first, second = draws(), draws(**other)
    assert (first == second).float().mean().item() < 0.001
    assert abs(torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]) < 0.03


def test_neighbouring_sequences_and_elements_are_not_correlated():
    drawn = draws(ids=tuple(range(32)), shape=(512,))
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.25  # 496 pairs of 512 draws: 5.6 sigma
    pairs = torch.stack((drawn[:, :-1].flatten(), drawn[:, 1:].flatten()))
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.04


def test_a_prefix_of_a_longer_draw_is_the_shorter_draw():
    assert torch.equal(draws(shape=(100,))[:, :10], draws(shape=(10,)))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws()
    generator_for(1, "embedding.weight")
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_values_have_a_generator_for_each_seed_and_name():
    first, again, other_name, other_seed = (
        torch.rand(8, generator=generator_for(seed, name))
        for seed, name in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    )
    assert torch.equal(first, again)
    assert not torch.isclose(first, other_name).any()
    assert not torch.isclose(first, other_seed).any()


def test_every_pass_over_a_batch_makes_other_draws_and_the_first_those_of_a_single_one():
    ids = torch.arange(4)
    first, second = (RandomStream(0, 0, number).uniform("here", ids, 64) for number in (0, 1))
    assert torch.equal(first, RandomStream(0, 0).uniform("here", ids, 64))
    assert not (first == second).any()


def test_draws_of_the_batch_are_no_sequences_own():
    stream = RandomStream(0, 3)
    drawn = stream.uniform_of_batch("here", torch.device("cpu"), 7)
    assert drawn.shape == (7,)
    for number in range(4):
        assert not (drawn == stream.uniform("here", torch.tensor([number]), 7)[0]).any()
