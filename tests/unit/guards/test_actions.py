"""What guards ask for is done, is a row, and survives a kill."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from poisoned_run import COMMON, bits, make, same_bits
from threaded_ranks import one_rank

from moe_train.controls import Controls
from moe_train.errors import TrainingError
from moe_train.guards.actions import Action, Scale, Stop, Warn
from moe_train.guards.group import GuardGroup

# Batches 17 and 18 are spikes in updates 18 and 19: there the guard responds.
POISON = (17, 18)
SPIKE = "guards=[{kind: spike, window: 6, threshold: 8, patience: 2, %s}]"
SLOW = SPIKE % "response: slow, lr_factor: 0.5, slow_steps: 2"


class Asking:
    """A guard that asks for actions after the updates that it is given them for, and remembers what it saw."""

    def __init__(self, actions: Mapping[int, Iterable[Action]]) -> None:
        self.actions = actions
        self.steps: list[int] = []

    def judge(self, update, loads) -> Iterable[Action]:
        self.steps.append(update.step)
        yield from self.actions.get(update.step, ())

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = list(state["steps"])


def rates(rows) -> dict[int, float]:
    """The learning rate of each update."""
    return {row["step"]: row["lr"] for row in rows.rows if "loss" in row}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that slows down after the spikes, from its start to its end."""
    trainer, rows = make(one_rank(), tmp_path_factory.mktemp("slow"), (*COMMON, SLOW), poison=POISON)
    assert trainer.fit() == 0
    return trainer, rows


def test_a_spike_slows_the_run_down_for_some_updates(undisturbed):
    _, rows = undisturbed
    (event,) = rows.events("scale")
    assert (event["step"], event["guard"], event["control"]) == (19, "spike", "lr")
    assert (event["factor"], event["until_step"]) == (0.5, 21)
    assert "2 losses in a row above" in event["reason"]
    lr = rates(rows)
    assert [lr[step] for step in (18, 19, 20, 21, 22)] == [0.01, 0.01, 0.005, 0.005, 0.01]


@pytest.mark.parametrize(
    "stop_at",
    [17, 19],
    ids=("between the spikes, which the guard counts", "while the rate is scaled"),
)
def test_a_run_that_is_stopped_and_resumed_comes_to_the_same_end(tmp_path, undisturbed, stop_at):
    straight, rows = undisturbed
    trainer, before = make(one_rank(), tmp_path, (*COMMON, SLOW), stop_at=stop_at, poison=POISON)
    assert (trainer.fit(), trainer.step) == (75, stop_at + 1)
    resumed, after = make(replace(one_rank(), attempt=2), tmp_path, (*COMMON, SLOW), poison=POISON)
    assert resumed.recovery.state_dict() == trainer.recovery.state_dict()
    assert resumed.fit() == 0
    assert len(before.events("scale") + after.events("scale")) == 1
    assert rates(before) | rates(after) == rates(rows)
    assert same_bits(bits(resumed), bits(straight))
    assert resumed.recovery.state_dict() == straight.recovery.state_dict()


def test_a_warning_is_a_row_and_changes_nothing(tmp_path):
    plain, _ = make(one_rank(), tmp_path / "plain", COMMON, poison=POISON)
    warned, rows = make(one_rank(), tmp_path / "warned", (*COMMON, SPIKE % "response: warn"), poison=POISON)
    assert (plain.fit(), warned.fit()) == (0, 0)
    (event,) = rows.events("warning")
    assert (event["step"], event["guard"]) == (19, "spike")
    assert same_bits(bits(plain), bits(warned))


def test_a_guard_can_end_the_run(tmp_path):
    trainer, rows = make(one_rank(), tmp_path, (*COMMON, SPIKE % "response: stop"), poison=POISON)
    with pytest.raises(TrainingError, match=r"step 19: 2 losses in a row .*, at which the guard spike stops"):
        trainer.fit()
    assert [row["step"] for row in rows.events("unstable")] == [19]


def test_a_scaled_coefficient_is_that_of_another_recipe(tmp_path):
    """2 x 0.01 and 0.02 are the same number, so both runs have the same bits."""
    short = ("steps=3", "log_every=1", "moe.router.balance_coefficient=%s")
    scaled, _ = make(one_rank(), tmp_path / "scaled", [option.replace("%s", "0.01") for option in short])
    scaled.recovery.controls = Controls().scaled("losses.balance", 2.0, None)
    plain, _ = make(one_rank(), tmp_path / "plain", [option.replace("%s", "0.02") for option in short])
    other, _ = make(one_rank(), tmp_path / "other", [option.replace("%s", "0.01") for option in short])
    assert [trainer.fit() for trainer in (scaled, plain, other)] == [0, 0, 0]
    assert same_bits(bits(scaled), bits(plain))
    assert not same_bits(bits(scaled), bits(other))


def test_actions_of_several_guards_are_taken_in_their_order(tmp_path):
    trainer, rows = make(one_rank(), tmp_path, (*COMMON, "steps=3"))
    trainer.recovery.guards = GuardGroup(
        {
            "one": Asking({2: [Warn("first"), Scale("second", "lr", 0.5)]}),
            "other": Asking({2: [Scale("third", "lr", 0.25)]}),
        }
    )
    assert trainer.fit() == 0
    asked = [(row["guard"], row["reason"]) for row in rows.rows if row.get("event") in ("warning", "scale")]
    assert asked == [("one", "first"), ("one", "second"), ("other", "third")]
    assert rates(rows)[3] == 0.01 * 0.25


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Scale("", "losses.balanse", 2.0), r"2 times losses.balanse; .* controls are lr, losses.balance"),
        (Scale("", "lr", float("nan")), "nan times lr; a factor is a finite number"),
        (Stop("enough"), r"step 1: enough, at which the guard one stops the run; lower optim.lr=0.01"),
    ],
    ids=("no such control", "no such factor", "stop"),
)
def test_an_action_that_cannot_be_taken_ends_the_run(tmp_path, action, message):
    trainer, _ = make(one_rank(), tmp_path, (*COMMON, "steps=3"))
    trainer.recovery.guards = GuardGroup({"one": Asking({1: [action]})})
    with pytest.raises(TrainingError, match=message):
        trainer.fit()
