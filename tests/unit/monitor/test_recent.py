"""Figures of evenness are those of a span of steps, whatever the interval between rows."""

import math

import pytest
import torch
from test_window import ALONE, CPU, stats
from threaded_ranks import ThreadAxis, run_ranks

from moe_train.config.schema import Recipe
from moe_train.moe.figures import MEANS, TOTALS
from moe_train.monitor import balance
from moe_train.monitor.balance import FAIR_SHARE
from moe_train.monitor.recent import BUCKETS, SPAN_STEPS, bucket_steps
from moe_train.monitor.window import LoadWindow
from moe_train.parallel.world import World

EXPERTS, STEPS = 6, 60
WINDOWED = {figure.name for figure in (*TOTALS, *MEANS) if figure.show is not None}
"""What a row has of its own window."""


def drawn(step: int, assignments: int = 24) -> list[int]:
    """Loads that move from step to step, as a young router's do."""
    generator = torch.Generator().manual_seed(step)
    chances = torch.rand(EXPERTS, generator=generator) ** 2 + 0.01
    chosen = torch.multinomial(chances, assignments, replacement=True, generator=generator)
    return torch.bincount(chosen, minlength=EXPERTS).tolist()


def rows(log_every: int, steps_of_a_part: int, resume_at: int | None = None) -> dict[int, dict]:
    window = LoadWindow([EXPERTS], CPU, steps_of_a_part)
    written = {}
    for step in range(1, STEPS + 1):
        window.add(((stats(drawn(step), slots=48, router_z=9.0, router_logit_rms=4.0),),), step)
        if step % log_every == 0:
            written[step] = window.reduce(ALONE, {}).as_row()
        if step == resume_at:
            state, window = window.state(ALONE), LoadWindow([EXPERTS], CPU, steps_of_a_part)
            window.load_state(state, ALONE)
    return written


@pytest.mark.parametrize("steps_of_a_part", [1, 2, 3])
@pytest.mark.parametrize("log_every", [1, 5, 10, 20])
def test_rows_of_the_same_step_have_the_same_figures_whatever_the_interval(log_every, steps_of_a_part):
    every_step, seldom = rows(1, steps_of_a_part), rows(log_every, steps_of_a_part)
    assert len(seldom) == STEPS // log_every
    for step, row in seldom.items():
        assert {*row} - WINDOWED == {*balance.FIGURES, "device_load"}
        for name in balance.FIGURES:
            assert row[name] == every_step[step][name], (step, name)


@pytest.mark.parametrize("steps_of_a_part", [1, 3])
def test_a_span_holds_the_last_steps_and_no_older_ones(steps_of_a_part):
    for step, row in rows(1, steps_of_a_part).items():
        newest = (step - 1) // steps_of_a_part
        first = max(newest - BUCKETS + 1, 0) * steps_of_a_part + 1
        loads = [drawn(each) for each in range(first, step + 1)]
        assert row["cv"] == [balance.cv([sum(counts) for counts in zip(*loads, strict=True)])]
        assert row["load"] == [drawn(step)]


def test_a_resume_goes_on_with_the_span():
    for resume_at in (7, 25, 40):
        assert rows(5, 2, resume_at) == rows(5, 2)


def test_a_checkpoint_without_a_span_begins_one():
    window = LoadWindow([2], CPU)
    window.load_state({"counts": [[5, 3, 0, 0, 0, 8]]}, ALONE)
    window.add(((stats([1, 1]),),), step=40)
    row = window.reduce(ALONE, {}).as_row()
    assert (row["load"], row["cv"]) == ([[6, 4]], [0])


def of_a_rank(world: World) -> list:
    window = LoadWindow([2], CPU)
    for step in (1, 2):
        window.add(((stats([3 * world.rank + step, 1]),),), step)
    state = window.state(ThreadAxis(world))
    window.load_state(state, ThreadAxis(world))
    return [state["recent"]["load"][:2], window.reduce(ThreadAxis(world), {}).recent]


def test_ranks_have_one_span_together_and_a_resume_counts_nothing_twice():
    for state, recent in run_ranks(2, of_a_rank):
        assert state == [[[5, 2]], [[7, 2]]]
        assert recent == [[12, 4]]


@pytest.mark.parametrize(
    ("experts", "sequences", "tokens", "steps"),
    [(8, 32, 128, 1), (64, 8, 64, 2), (2048, 8, 64, 40), (4, 1, 1, 40)],
)
def test_a_span_has_enough_assignments_and_enough_steps(experts, sequences, tokens, steps):
    recipe = Recipe()
    recipe.moe.num_experts = experts
    recipe.data.global_batch, recipe.data.sequence_length = sequences, tokens
    assert bucket_steps(recipe) == steps
    span = BUCKETS * steps
    assert span >= SPAN_STEPS
    assert span * sequences * tokens >= FAIR_SHARE * experts


@pytest.mark.parametrize(("experts", "assignments"), [(8, 64), (8, 800), (64, 640), (64, 6400), (3, 30)])
def test_the_cv_of_chance_is_that_of_a_simulation(experts, assignments):
    generator = torch.Generator().manual_seed(7)
    chosen = torch.randint(experts, (2000, assignments), generator=generator)
    loads = torch.zeros(2000, experts).scatter_add_(1, chosen, torch.ones_like(chosen).float())
    of_each = loads.std(1, correction=0) / loads.mean(1)
    n = [0] * (experts - 1) + [assignments]
    assert float(of_each.square().mean().sqrt()) == pytest.approx(balance.chance_cv(n), rel=0.03)
    assert float(of_each.mean()) == pytest.approx(balance.chance_cv(n), rel=0.15)


def test_by_chance_no_expert_looks_dead_in_a_span():
    """At FAIR_SHARE assignments each; at 8 each a fair one does in 3 of 10,000."""
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(8, (2000, 8 * FAIR_SHARE), generator=generator)
    loads = torch.zeros(2000, 8).scatter_add_(1, chosen, torch.ones_like(chosen).float())
    assert not any(balance.dead_experts(load) for load in loads.int().tolist())


def test_nothing_counted_has_no_figure():
    assert math.isnan(balance.chance_cv([0, 0]))
    assert math.isnan(balance.min_violation([0, 0]))
    assert balance.min_violation([4, 4, 4]) == 0
    assert balance.min_violation([6, 6, 0]) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("effective", 4.0), ("dead", []), ("min_violation", 0.0), ("chance_cv", math.sqrt(3 / 16))],
)
def test_what_an_older_row_lacks_is_had_from_its_loads(key, value):
    assert balance.figure({"load": [[4, 4, 4, 4]]}, key, 0) == pytest.approx(value)
    assert balance.figure({"load": [[1, 0, 0, 0]], key: [value]}, key, 0) == value
    assert balance.figure({"load": [[0, 0, 0, 0]]}, key, 0) is None
