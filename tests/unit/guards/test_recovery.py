"""Going back on a loss spike: what comes of it is the run that never saw the batches passed over."""

from dataclasses import replace

import pytest
import torch
from poisoned_run import COMMON, ROLLBACK, bits, make, same_bits
from threaded_ranks import one_rank

from moe_train.checkpoint.folder import CheckpointFolder
from moe_train.errors import TrainingError
from moe_train.monitor.rows import current_rows

# Batches 17 and 18 are spikes in updates 18 and 19; the newest checkpoint two updates older is that of step 12.
POISON = (17, 18, 19)
PASSED_OVER = range(12, 19)


@pytest.fixture(scope="module")
def spared(tmp_path_factory):
    """The run without those batches. The third one is a single spike in it, and no reason to go back."""
    trainer, _ = make(
        one_rank(), tmp_path_factory.mktemp("spared"), COMMON, poison=POISON, left_out=PASSED_OVER
    )
    assert trainer.fit() == 0
    return bits(trainer)


def test_a_spike_goes_back_and_leaves_its_batches_out(tmp_path, spared):
    trainer, rows = make(one_rank(), tmp_path, ROLLBACK, poison=POISON)
    assert trainer.fit() == 0
    (event,) = rows.events("rollback")
    assert (event["step"], event["from_step"], event["passed_over_batches"]) == (12, 19, 7)
    assert same_bits(bits(trainer), spared)

    losses = [row["step"] for row in rows.rows if "loss" in row]
    assert losses == [*range(1, 20), *range(13, 23)]
    counting = [row for row in current_rows(rows.rows) if "loss" in row]
    assert [row["step"] for row in counting] == list(range(1, 23))
    assert counting[12]["loss"] > 6  # of batch 19, the single spike
    assert all(row["loss"] < 4 for row in counting[13:])
    folder = CheckpointFolder(tmp_path)
    assert [leftover.path.name for leftover in folder.leftovers()] == ["step_00000018.abandoned-1"]
    assert folder.steps() == [6, 12, 18, 22]
    assert folder.latest.read_text() == "step_00000022\n"


@pytest.mark.parametrize(
    ("stop_at", "saved", "rollbacks"),
    [(17, 18, 1), pytest.param(18, 12, 1, marks=pytest.mark.distributed_exhaustive), (21, 15, 0)],
)
def test_a_run_that_is_stopped_and_resumed_comes_to_the_same_end(tmp_path, spared, stop_at, saved, rollbacks):
    """Stopped between two spikes, whose count is in the checkpoint, in the update that goes back, and after it."""
    trainer, _ = make(one_rank(), tmp_path, ROLLBACK, stop_at=stop_at, poison=POISON)
    assert (trainer.fit(), trainer.step) == (75, saved)
    resumed, rows = make(replace(one_rank(), attempt=2), tmp_path, ROLLBACK, poison=POISON)
    assert resumed.fit() == 0
    assert len(rows.events("rollback")) == rollbacks
    assert same_bits(bits(resumed), spared)


def test_a_spike_before_any_checkpoint_is_told_and_training_goes_on(tmp_path):
    trainer, rows = make(one_rank(), tmp_path, (*ROLLBACK, "checkpoint.every=20"), poison=POISON)
    assert trainer.fit() == 0
    assert rows.events("rollback") == []
    (event,) = rows.events("spike")
    assert event["step"] == 19
    assert "2 losses in a row above" in event["reason"]


def test_one_rollback_too_many_ends_the_run(tmp_path):
    limit = "stability.rollback_limit=1"
    trainer, rows = make(one_rank(), tmp_path, (*ROLLBACK, limit), poison=(17, 18, 27, 28))
    with pytest.raises(TrainingError, match=r"does not roll back \(stability.rollback_limit=1 is reached\)"):
        trainer.fit()
    assert len(rows.events("rollback")) == 1
    assert rows.events("unstable")[0]["step"] == 22


def test_too_many_updates_left_out_in_a_row_go_back_too(tmp_path):
    """Weights that have become NaN cannot heal: every update is left out until an earlier checkpoint is loaded."""
    skipping = ("stability.skip_non_finite=true", "stability.skip_limit=3")
    trainer, rows = make(one_rank(), tmp_path, (*ROLLBACK, *skipping))

    def spoil(step: int) -> None:
        if step == 16 and not rows.events("rollback"):
            with torch.no_grad():
                trainer.training_step.engine.shards["norm.weight"].data.fill_(torch.nan)

    trainer.watch.beat = spoil
    assert trainer.fit() == 0
    assert [row["step"] for row in rows.events("skipped")] == [17, 18, 19]
    (event,) = rows.events("rollback")
    assert (event["step"], event["reason"]) == (12, "3 updates in a row were not finite")
    assert all(value.isfinite().all() for value in bits(trainer).values())
