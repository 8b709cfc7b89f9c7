"""What a checkpoint keeps of guards: by name, and also as it was kept before there were guards."""

from contextlib import nullcontext

from tiny_model import tiny_recipe

from moe_train.controls import Controls
from moe_train.guards.group import guards_of
from moe_train.guards.recovery import Counts, Recovery

BEFORE = {
    "skipped": 4,
    "rollbacks": 1,
    "passed_over": 7,
    "skips_in_row": 2,
    "spikes": {"losses": [3.0, 2.5], "in_row": 1},
}


def recovery(*overrides: str) -> Recovery:
    """A Recovery of which only the state is used."""
    return Recovery(tiny_recipe(*overrides), None, None, None, lambda phase: nullcontext())


def test_a_checkpoint_from_before_there_were_guards_is_read():
    made = recovery("stability.rollback=true")
    made.restore({"step": 1, "stability": BEFORE})
    assert made.counts == Counts(skipped=4, rollbacks=1, passed_over=7)
    assert made.controls == Controls()
    assert made.guards.state_dict() == {
        "stability.non_finite": {"in_row": 2},
        "stability.spike": {"losses": [3.0, 2.5], "in_row": 1},
    }


def test_a_checkpoint_without_any_state_leaves_everything_as_it_is():
    made = recovery("stability.rollback=true")
    before = made.state_dict()
    made.restore({"step": 1})
    assert made.state_dict() == before


def test_a_guard_that_is_new_to_the_run_begins_without_state_and_one_that_is_gone_is_forgotten():
    made = recovery("guards=[{kind: spike}]")
    made.restore({"step": 1, "recovery": recovery("stability.rollback=true").state_dict()})
    assert made.guards.state_dict().keys() == {"stability.non_finite", "spike"}


def test_guards_of_one_kind_have_names_of_their_own():
    guards = guards_of(tiny_recipe("stability.rollback=true", "guards=[{kind: spike}, {kind: spike}]"))
    assert list(guards.state_dict()) == ["stability.non_finite", "stability.spike", "spike", "spike-2"]


def test_a_control_has_its_factor_up_to_its_last_update():
    controls = Controls().scaled("lr", 0.5, 3).scaled("losses.z", 0.0, None)
    assert [controls.factor("lr", made) for made in (0, 2, 3)] == [0.5, 0.5, 1.0]
    assert controls.factor("losses.z", 100) == 0.0
    assert controls.factor("losses.balance", 0) == 1.0
    assert controls.scaled("lr", 2.0, None).factor("lr", 9) == 2.0
    assert Controls.from_state(controls.state_dict()) == controls
