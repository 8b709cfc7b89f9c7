"""How long a worker may go on without a step, phase by phase, on a clock that the test moves."""

import pytest

from moe_train.worker import progress as module
from moe_train.worker.progress import CHECKPOINT, STARTING, TRAINING, VALIDATING, Progress


class Clock:
    """Seconds, as the time module gives them, that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_patience_is_unknown_until_the_recipe_is_and_long_until_the_first_step(clock: Clock) -> None:
    progress = Progress()
    assert progress.patience_s is None
    progress.expect(hang_s=60, timeout_s=300)
    assert (progress.phase, progress.patience_s) == (STARTING, 300)
    clock.now += 200
    progress.made(1)
    assert (progress.phase, progress.patience_s, progress.since) == (TRAINING, 60, 1200)


def test_slow_steps_stretch_the_patience_until_twenty_quicker_ones_have_passed(clock: Clock) -> None:
    progress = Progress()
    progress.expect(hang_s=60, timeout_s=300)
    progress.made(1)
    clock.now += 30
    progress.made(2)
    assert progress.patience_s == 150
    for step in range(3, 23):
        clock.now += 1
        progress.made(step)
    assert progress.patience_s == 60


def test_a_phase_of_its_own_has_the_patience_of_a_collective_and_is_no_part_of_a_step(clock: Clock) -> None:
    progress = Progress()
    progress.expect(hang_s=60, timeout_s=300)
    progress.made(1)
    with progress.during(CHECKPOINT):
        assert (progress.phase, progress.patience_s) == (CHECKPOINT, 300)
        clock.now += 250
    assert (progress.phase, progress.since) == (TRAINING, 1250)
    progress.made(2)
    assert progress.patience_s == 60


def test_a_validation_before_the_first_step_belongs_to_the_start(clock: Clock) -> None:
    progress = Progress()
    with progress.during(CHECKPOINT):
        assert progress.phase == STARTING
    assert progress.phase == STARTING


def test_each_batch_of_a_validation_has_the_patience_of_a_step(clock: Clock) -> None:
    progress = Progress()
    progress.expect(hang_s=60, timeout_s=300)
    progress.made(1)
    with progress.during(VALIDATING):
        clock.now += 50
        progress.made_part()
        assert (progress.phase, progress.parts, progress.since, progress.patience_s) == (
            VALIDATING,
            1,
            1050,
            60,
        )
    assert (progress.phase, progress.parts) == (TRAINING, 0)
