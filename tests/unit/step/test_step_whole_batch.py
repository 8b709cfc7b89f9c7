"""Updates by a balance loss of the whole batch: accumulation changes nothing, and costs a pass only where it must."""

from dataclasses import replace

import pytest
import torch
from balanced_routers import BALANCED, balanced, padded
from test_step_passes import training_step, update
from tiny_model import global_batch, share_of

from moe_train.data.batch import Batch

PIECES = "data.micro_batch=2"


def assert_same(kind: str, whole, pieces) -> None:
    (gradients, result), (others, accumulated) = whole, pieces
    assert accumulated.losses.keys() == result.losses.keys()
    for name, loss in result.losses.items():
        assert float(accumulated.losses[name]) == pytest.approx(float(loss), rel=1e-5), name
    for name, gradient in others.items():
        largest = float(gradients[name].abs().max())
        torch.testing.assert_close(
            gradient,
            gradients[name],
            rtol=0,
            atol=1e-5 * largest + 1e-7,
            msg=lambda m, name=name: f"{kind}: {name}: {m}",
        )


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("kind", BALANCED)
def test_accumulated_microbatches_make_the_update_of_the_whole_batch(kind, is_padded):
    overrides = balanced(kind)
    change = padded if is_padded else (lambda batch: batch)
    whole = update(training_step(*overrides), change=change)
    pieces = update(training_step(*overrides, PIECES), change=change)
    assert_same(kind, whole, pieces)


@pytest.mark.parametrize("kind", ["switch", "noisy_top_k"])
def test_the_gradient_of_the_whole_batch_is_not_that_of_its_sequences(kind):
    """What the test above must tell apart."""
    (whole, _), (each, _) = (
        update(training_step(*balanced(kind), *over)) for over in ((), ("moe.router.balance_over=sequence",))
    )
    router = [name for name in whole if name.endswith("router.weight")]
    assert router
    for name in router:
        assert float((whole[name] - each[name]).norm() / whole[name].norm()) > 0.01


def test_two_passes_have_a_batch_each():
    twice = (*balanced("switch"), "objective.kind=consistency", "objective.label_smoothing=0")
    assert_same("switch", update(training_step(*twice)), update(training_step(*twice, PIECES)))


def num_forwards(*overrides: str) -> int:
    """Forward passes that an update of the tiny batch of 8 sequences makes."""
    made, calls = training_step(*overrides), []
    forward = made.engine.model.forward

    def counted(*arguments):
        calls.append(torch.is_grad_enabled())
        return forward(*arguments)

    made.engine.model.forward = counted
    update(made)
    assert sum(calls) == 8 // (made.recipe.data.micro_batch or 8)
    return len(calls)


@pytest.mark.parametrize(
    ("overrides", "forwards"),
    [
        ((), 1),
        ((PIECES,), 8),
        ((PIECES, "moe.router.balance_coefficient=0"), 4),
        ((PIECES, "moe.router.balance_over=group"), 4),
        ((PIECES, "moe.router.kind=random"), 4),
        ((PIECES, "moe.every=0"), 4),
    ],
)
def test_the_batch_is_counted_first_only_where_it_comes_in_pieces_and_something_is_learned(
    overrides, forwards
):
    assert num_forwards(*overrides) == forwards


def test_a_loss_that_is_there_to_be_seen_is_the_batchs_too():
    unweighted = "moe.router.balance_coefficient=0"
    _, whole = update(training_step(unweighted))
    _, pieces = update(training_step(unweighted, PIECES))
    assert float(pieces.losses["balance"]) == pytest.approx(float(whole.losses["balance"]), rel=1e-6)


def test_updates_repeat_bit_by_bit():
    (one, _), (other, _) = (update(training_step(PIECES)) for _ in range(2))
    assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())


def test_validation_counts_nothing():
    made = training_step(PIECES)
    batches = share_of(global_batch(made.recipe, 0), 0, 1, 3)
    last: Batch = replace(batches[-1])
    assert made.evaluate([*batches[:2], last], 1) > 0
