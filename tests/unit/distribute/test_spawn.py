"""Experts made out of one, on one worker: what a copy keeps, what it lacks, and what happens before and after."""

import math

import pytest
import torch
from poisoned_run import COMMON, ROLLBACK, bits, make, same_bits
from threaded_ranks import one_rank
from tiny_model import global_batch, one_worker, share_of, tiny_recipe
from torch import Tensor

from moe_train.step.training_step import TrainingStep

PHASE, MASK, EXPERTS = 3, 0.25, 8
DIVERSIFIED = (
    "moe.router.kind=dense_to_sparse",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
    "moe.router.decay_steps=2",
    "moe.router.hard_step=3",
    f"moe.router.diversify_steps={PHASE}",
    f"moe.router.diversify_mask={MASK}",
)
ADAMW = ("optim.kind=adamw", "optim.lr=1e-2")
"""With its weight decay of 0.1."""


def training_step(*overrides: str) -> TrainingStep:
    recipe = tiny_recipe(*DIVERSIFIED, *overrides)
    return TrainingStep.build(recipe, one_worker())


def update(made: TrainingStep, steps: range) -> list[Tensor]:
    """The loads [L, E] of each of the updates."""
    loads = []
    for step in steps:
        result = made.update(share_of(global_batch(made.recipe, step), 0, 1), step, False)
        loads.append(torch.stack([layer.load for layer in result.stats[0]]))
    return loads


def experts(made: TrainingStep) -> dict[str, Tensor]:
    return {name: shard.data.clone() for name, shard in made.engine.shards.items() if shard.is_expert}


def spawned(*overrides: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The experts just before the copies are made, and just after. The last update changes no weight."""
    made = training_step(*overrides, "optim.lr=0")
    with torch.no_grad():
        for name, shard in made.engine.shards.items():
            shard.data.copy_(
                torch.randn(shard.data.shape, generator=torch.Generator().manual_seed(len(name)))
            )
    update(made, range(PHASE - 1))
    before = experts(made)
    update(made, range(PHASE - 1, PHASE))
    return before, experts(made)


def test_until_the_phase_ends_only_the_first_expert_learns():
    made = training_step()
    initial = experts(made)
    for load in update(made, range(PHASE - 1)):
        assert load[:, 0].tolist() == [8 * 16] * 2
        assert load.sum().item() == 2 * 8 * 16
    for name, now in experts(made).items():
        assert torch.equal(now[1:], initial[name][1:]), name
        assert not torch.equal(now[0], initial[name][0]), name


def test_a_copy_has_the_weights_of_the_first_expert_or_zeros():
    before, after = spawned()
    assert len(after) == 4
    for name, now in after.items():
        assert now.shape == before[name].shape
        assert ((now == before[name][0]) | (now == 0)).all(), name
        zeroed = (now == 0).float().mean((1, 2))
        deviation = math.sqrt(MASK * (1 - MASK) / now[0].numel())
        assert (zeroed - MASK).abs().max() < 4 * deviation, (name, zeroed)


def test_every_expert_layer_matrix_and_seed_has_a_mask_of_its_own():
    masks = [(now[expert] == 0).flatten() for now in spawned()[1].values() for expert in range(EXPERTS)]
    masks += [(now[0] == 0).flatten() for now in spawned("seed=1")[1].values()]
    both = MASK**2
    for index, one in enumerate(masks):
        for other in masks[:index]:
            shared = (one & other).float().mean().item()  # of independent masks: 0.0625
            assert abs(shared - both) < 5 * math.sqrt(both * (1 - both) / one.numel())


def test_no_mask_depends_on_what_is_masked():
    before, after = spawned()
    for name, now in after.items():
        kept = (before[name][0] * (now != 0)).sum((1, 2)) / (now != 0).sum((1, 2))
        assert kept.abs().max() < 5 / math.sqrt((1 - MASK) * now[0].numel()), name


def test_the_weights_of_idle_experts_do_not_matter():
    """Whatever the others were, and whatever weight decay did to them, the run is the same."""
    runs = []
    for factor in (1.0, -7.0):
        made = training_step(*ADAMW)
        for shard in made.engine.shards.values():
            if shard.is_expert:
                shard.data[1:] *= factor
        update(made, range(PHASE + 2))
        runs.append({name: shard.data.clone() for name, (shard,) in made.engine.state().items()})
    assert same_bits(*runs)


def test_what_the_optimizer_knows_of_experts_and_gate_begins_anew():
    made = training_step(*ADAMW)
    update(made, range(PHASE))
    for name, shard in made.engine.shards.items():
        state = made.engine.optimizer.state[shard.data]
        begun = ".experts." in name or ".router." in name
        assert state["step"].item() == (0 if begun else PHASE), name
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (state[moment] == 0).all().item() == begun, (name, moment)
    update(made, range(PHASE, PHASE + 1))
    assert {state["step"].item() for state in made.engine.optimizer.state.values()} == {1, PHASE + 1}


@pytest.mark.parametrize("optimizer", [(), ADAMW, ("optim.kind=adafactor", "optim.lr=1e-2")], ids=str)
def test_after_the_phase_all_experts_have_tokens_and_the_loss_goes_on_falling(optimizer):
    made = training_step(*optimizer)
    loads = update(made, range(PHASE + 3))
    assert (loads[PHASE] == 8 * 16).all(), "at first all experts have all tokens"
    losses = [made.evaluate([global_batch(made.recipe, 0)], PHASE + 3)]
    for step in range(PHASE + 3, PHASE + 13):
        made.update([global_batch(made.recipe, 0)], step, False)
    losses.append(made.evaluate([global_batch(made.recipe, 0)], PHASE + 13))
    assert losses[1] < losses[0] - 0.1


def test_copies_are_made_even_if_the_last_update_of_the_phase_is_left_out():
    made = training_step("stability.skip_non_finite=true")
    update(made, range(PHASE - 1))
    norm = made.engine.shards["norm.weight"].data
    healthy, norm[0] = norm[0].clone(), math.inf
    before = experts(made)
    result = made.update([global_batch(made.recipe, 0)], PHASE - 1, False)
    assert result.is_skipped
    for name, now in experts(made).items():
        assert ((now == before[name][0]) | (now == 0)).all(), name
    norm[0] = healthy
    assert math.isfinite(made.update([global_batch(made.recipe, 1)], PHASE, False).grad_norm)


WHOLE_RUN = (*DIVERSIFIED, "moe.router.decay_steps=4", "moe.router.hard_step=8", "checkpoint.every=6")


def run(folder, phase: int, overrides: tuple[str, ...], **how) -> tuple[int, object, object]:
    trainer, rows = make(
        how.pop("world", one_rank()),
        folder,
        (*overrides, *WHOLE_RUN, f"moe.router.diversify_steps={phase}"),
        **how,
    )
    return trainer.fit(), trainer, rows


@pytest.mark.parametrize("saved", [5, 6, 7])
def test_a_run_stopped_before_at_and_after_the_switch_comes_to_the_same_end(tmp_path, saved):
    straight = run(tmp_path / "straight", 6, COMMON)[1]
    code, stopped, _ = run(tmp_path / "run", 6, COMMON, stop_at=saved - 1)
    assert (code, stopped.step) == (75, saved)
    code, resumed, rows = run(tmp_path / "run", 6, COMMON, world=one_rank(attempt=2))
    assert code == 0
    assert next(row["step"] for row in rows.rows if "loss" in row) == saved + 1
    assert same_bits(bits(resumed), bits(straight))


@pytest.mark.parametrize("phase", [10, 12, 14], ids="switch at {}".format)
def test_a_rollback_across_the_switch_makes_the_copies_again(tmp_path, phase):
    """The run goes back from 19 to 12: past the switch, to it, or to after it."""
    spared = run(tmp_path / "spared", phase, COMMON, poison=(17, 18), left_out=range(12, 19))[1]
    code, trainer, rows = run(tmp_path / "run", phase, ROLLBACK, poison=(17, 18))
    assert code == 0
    assert [(row["step"], row["from_step"]) for row in rows.events("rollback")] == [(12, 19)]
    assert same_bits(bits(trainer), bits(spared))
