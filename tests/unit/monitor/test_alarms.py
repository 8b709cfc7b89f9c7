"""When an alarm begins and ends, whatever its detector, and that a resume changes nothing."""

import json

import pytest
from made_rows import EVEN, judged, recipe_of, row

from moe_train.monitor.alarms import Alarms, warm_up_steps

ONE_DEAD = [280, 280, 280, 0, 280, 280, 280, 280]
HALF_ALIVE = [280, 280, 280, 45, 280, 280, 280, 280]
"""An expert with 0.18 of the fair share: neither ill nor well."""


def rows(sick: range, loads=ONE_DEAD, every=10, last=400):
    return [row(step, EVEN, loads if step in sick else EVEN) for step in range(every, last + 1, every)]


def test_an_alarm_needs_three_windows_in_a_row_and_names_its_place_and_beginning():
    begun, over = judged(recipe_of(), rows(range(200, 300)))
    ((step, alarm),) = begun
    assert (step, alarm.since) == (220, 191)
    assert (alarm.detector, alarm.layers, alarm.experts) == ("dead_experts", [1], [3])
    assert (alarm.value, alarm.limit, alarm.severity) == (0.0, 0.1, "warning")
    ((end, gone),) = over
    assert end == 320
    assert (gone.layers, gone.experts) == ([1], [3])


def test_two_windows_are_no_alarm():
    assert judged(recipe_of(), rows(range(200, 220))) == ([], [])


def test_an_alarm_is_not_over_while_the_place_is_between_ill_and_well():
    both = [*rows(range(200, 250), last=250), *(row(step, EVEN, HALF_ALIVE) for step in range(260, 400, 10))]
    begun, over = judged(recipe_of(), both)
    assert len(begun) == 1
    assert over == []


def test_three_rows_of_one_step_each_are_too_short_a_time():
    every = [row(step, EVEN, ONE_DEAD if step > 200 else EVEN) for step in range(1, 215)]
    ((step, _),), _ = judged(recipe_of(), every)
    assert step == 210


def test_nothing_is_judged_before_the_learning_rate_is_up_and_loads_had_time_to_spread():
    for warm_up, quiet in ((0, 60), (200, 200)):
        ((step, alarm),), _ = judged(recipe_of(f"optim.schedule.warmup_steps={warm_up}"), rows(range(0, 400)))
        assert alarm.since == quiet + 1
        assert step == quiet + 30


def test_the_more_experts_share_the_tokens_the_longer_a_router_takes_to_spread_them():
    # 4,096 tokens an update, and 6,000 assignments an expert.
    assert warm_up_steps(recipe_of()) == 60
    assert warm_up_steps(recipe_of("moe.num_experts=64")) == 94
    assert warm_up_steps(recipe_of("moe.num_experts=64", "moe.router.kind=top_k", "moe.router.k=2")) == 60
    assert warm_up_steps(recipe_of("moe.num_experts=1024")) == 200
    assert warm_up_steps(recipe_of("moe.every=0")) == 60


def test_a_collapse_that_no_healthy_run_begins_with_is_named_during_warm_up():
    worse, better = [9000, *[100] * 7], [4000, 4000, *[60] * 6]
    (alarm,) = (
        found for step, found in judged(recipe_of(), [row(10 * n, worse, EVEN) for n in (1, 2, 3)])[0]
    )
    assert (alarm.detector, alarm.severity, alarm.since, alarm.layers) == (
        "load_collapse",
        "critical",
        1,
        [0],
    )
    assert judged(recipe_of(), [row(10 * n, better, EVEN) for n in (1, 2, 3, 4, 5)]) == ([], [])


def test_rows_with_few_assignments_are_judged_together():
    few = [count // 25 for count in EVEN]
    none = [12, 12, 12, 0, 12, 12, 12, 12]
    many = [row(step, few, none if step > 200 else few) for step in range(2, 400, 2)]
    ((step, alarm),), _ = judged(recipe_of(), many)
    # Ten rows of 10 assignments an expert make a window.
    assert (step, alarm.since) == (260, 201)


def test_layers_that_are_ill_as_wholes_share_an_alarm_and_experts_are_named_by_layer():
    collapsed = [9000, *[1] * 7]
    begun, _ = judged(recipe_of(), [row(step, collapsed, collapsed) for step in range(10, 200, 10)])
    named = {(alarm.detector, tuple(alarm.layers), tuple(alarm.experts)) for _, alarm in begun}
    dead = tuple(range(1, 8))
    assert named >= {
        ("load_collapse", (0, 1), ()),
        ("dead_experts", (0,), dead),
        ("dead_experts", (1,), dead),
    }


def test_a_run_that_is_left_and_resumed_at_any_row_finds_the_same():
    recipe, all_rows = recipe_of(), rows(range(150, 250), last=300)
    whole = Alarms(recipe)
    expected = [whole.judge(each) for each in all_rows]
    assert sum(len(begun) + len(over) for begun, over in expected) == 2
    for place in range(len(all_rows)):
        before, after = Alarms(recipe), Alarms(recipe)
        found = [before.judge(each) for each in all_rows[:place]]
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert [*found, *(after.judge(each) for each in all_rows[place:])] == expected


UNEVEN_BY_DESIGN = {
    "hash": (),
    "random": (),
    "thor": ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", "objective.kind=consistency"),
    "smear": ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", "moe.router.segment=16"),
}


@pytest.mark.parametrize(("kind", "others"), UNEVEN_BY_DESIGN.items())
def test_what_a_kind_of_router_makes_normal_is_no_alarm(kind, others):
    one_expert = [8000, *[0] * 7]
    recipe = recipe_of(f"moe.router.kind={kind}", *others)
    assert judged(recipe, [row(step, one_expert, one_expert) for step in range(10, 600, 10)]) == ([], [])


def test_the_first_phase_of_evomoe_and_its_hard_step_are_no_alarm_and_what_follows_is_judged():
    recipe = recipe_of(
        "moe.router.kind=dense_to_sparse",
        "moe.router.balance_coefficient=0.01",
        *("moe.router.diversify_steps=200", "moe.router.decay_steps=100", "moe.router.hard_step=200"),
        *("moe.capacity_factor=null", "moe.eval_capacity_factor=null"),
    )
    one_expert = [8000, *[0] * 7]
    phase = [row(step, one_expert, one_expert) for step in range(10, 201, 10)]
    after = [row(step) for step in range(210, 401, 10)]
    change = [row(step, ONE_DEAD, ONE_DEAD) for step in range(410, 451, 10)]
    assert judged(recipe, [*phase, *after, *change]) == ([], [])
    late = [row(step, ONE_DEAD, ONE_DEAD) for step in range(460, 600, 10)]
    begun, _ = judged(recipe, [*phase, *after, *change, *late])
    assert {(alarm.detector, alarm.since) for _, alarm in begun} == {("dead_experts", 461)}
