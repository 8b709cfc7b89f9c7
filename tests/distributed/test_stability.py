"""Two workers, of which one sees what is wrong: both leave the update out, both go back, to the same bits."""

from pathlib import Path

import torch
from gloo_workers import run_workers
from layout_run import tiny_step
from poisoned_run import COMMON, ROLLBACK, bits, make, same_bits
from tiny_model import global_batch, share_of

from moe_train.parallel.world import World

LAYOUT = ("parallel.expert=2", "moe.router.kind=deepseek", "moe.router.k=1", "moe.capacity_factor=null")


def leave_out(world: World) -> tuple[bool, bool, float]:
    """An update in which the last rank alone gets an infinite gradient; was it left out, and did anything change?"""
    recipe, training_step = tiny_step(world, *LAYOUT, "optim.kind=adamw", "stability.skip_non_finite=true")
    training_step.update(share_of(global_batch(recipe, 0), world.rank, world.size), 0, False)
    before = {name: shard.data.clone() for name, (shard,) in training_step.engine.state().items()}

    def hook(module, inputs, output):
        if world.rank == world.size - 1:
            output.register_hook(lambda grad: grad * torch.inf)

    training_step.engine.model.norm.register_forward_hook(hook)
    result = training_step.update(share_of(global_batch(recipe, 1), world.rank, world.size), 1, False)
    after = {name: shard.data for name, (shard,) in training_step.engine.state().items()}
    return result.is_skipped, same_bits(before, after), result.mean_loss


def go_back(world: World, folder: Path) -> tuple[list[tuple[int, int]], bool]:
    """The rollbacks of a run whose last rank alone reads bad batches; and is its end that of a run without them?"""
    text = {"poison": (17, 18), "only_rank": world.size - 1}
    trainer, rows = make(world, folder / "poisoned", (*ROLLBACK, *LAYOUT), **text)
    assert trainer.fit() == 0
    events = [(row["step"], row["from_step"]) for row in rows.events("rollback")]
    spared, _ = make(world, folder / "spared", (*COMMON, *LAYOUT), left_out=range(12, 19))
    assert spared.fit() == 0
    return events, same_bits(bits(trainer), bits(spared))


def both(world: World, folder: Path):
    return leave_out(world), go_back(world, folder)


def test_two_workers_leave_an_update_out_and_go_back_together(tmp_path):
    results = run_workers(2, both, tmp_path)
    losses = {left_out[2] for left_out, _ in results}
    assert len(losses) == 1
    assert [left_out[:2] for left_out, _ in results] == [(True, True)] * 2
    assert [went_back for _, went_back in results] == [([(12, 19)], True)] * 2
