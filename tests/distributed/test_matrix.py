"""Combinations of layouts, engines and models that cover all pairs of options train like one process.

Five updates of the tiny model, with jitter, dropout, a capacity limit and clipping. SGD at a high rate, because AdamW
hides errors of scale; gradients of the first step element by element, parameters or moments after the last.
"""

import pytest
import torch
from gloo_workers import run_workers
from layout_run import LayoutRun, gathered, step_of, tiny_step, train
from matrix import AXES, MODEL, Choice, matrix, name_of, overrides_of
from rounding import assert_rounded_alike
from test_layouts import assert_same_gradients, assert_same_run
from tiny_model import global_batch, share_of, tiny_recipe

from moe_train.checkpoint.replicas import Replicas
from moe_train.config.check import require_sound
from moe_train.parallel.world import World

PARTS = [(1, 1), (2, 1), (4, 6), (8, 2)]
"""Numbers of workers, and of process groups that share their combinations: starting one takes seconds."""
PLAIN = {axis: next(iter(values)) for axis, values in AXES.items()}
REPRESENTATIVES = [
    PLAIN | {"tensor": "2", "sequence": "true", "expert": "4", "recompute": "block"},
    PLAIN | {"expert_tensor": "2", "sharding": "copies", "optimizer": "adamw", "router": "top_k"},
    PLAIN | {"engine": "stage 2", "micro_batch": "1", "parts": "odd vocabulary, every second layer"},
    PLAIN | {"engine": "stage 2", "tensor": "2", "sequence": "true", "positions": "transformer_xl"},
]


def train_both(world: World, choices: list[Choice]) -> list[tuple[LayoutRun | None, LayoutRun]]:
    """The runs of the choices on these ranks; the runs of one process are made by one rank each."""
    expected = [
        train_alone(choice) if index % world.size == world.rank else None
        for index, choice in enumerate(choices)
    ]
    runs = []
    for choice in choices:
        overrides = overrides_of(choice)
        require_sound(tiny_recipe(*overrides), world.size)
        try:
            runs.append(train(world, *overrides))
        except Exception as error:
            raise AssertionError(f"{name_of(choice)}: {error}") from error
    return list(zip(expected, runs, strict=True))


def train_alone(choice: Choice) -> LayoutRun:
    """The run of one process without parallelism; where bf16 rounds, as no two layouts do alike, that of fp32 too."""
    alone, overrides = World(0, 1, 0, 1, torch.device("cpu")), overrides_of(choice, tuple(MODEL))
    run = train(alone, *overrides)
    if choice["precision"] == "bf16":
        run.unrounded = train(alone, *overrides, "precision=fp32")
    return run


def has_whole_sums(choice: Choice) -> bool:
    """Whether no sum of bf16 products is made of rounded parts, of tensor ranks, slices of experts or hosts."""
    return choice["tensor"] == choice["expert_tensor"] == "1" and choice["dispatch"] != "hierarchical"


def assert_same(choice: Choice, expected: LayoutRun, runs: list[LayoutRun]) -> None:
    """The ranks' runs are that of one process, within rounding, and what several ranks hold is equal to the bit."""
    state = gathered([run.state for run in runs])
    if expected.unrounded is not None:
        assert_rounded_alike(expected, runs)
        if has_whole_sums(choice):
            assert runs[0].losses[0] == pytest.approx(expected.losses[0], rel=1e-5)
        return
    # An update that divides by the root of squares makes much of gradients that are nothing but rounding. So what has
    # its first gradient behind one is compared by its moments at the end.
    divides = choice["optimizer"] != "sgd"
    late = {name for name in expected.gradients if divides and step_of(choice["router"], name)}
    assert_same_gradients(expected, runs, digits=1e-5, but=late)
    assert runs[0].norms[0] == pytest.approx(expected.norms[0], rel=1e-5), "norm of the first step"
    assert_same_run(expected, runs, digits=1e-5)
    assert runs[0].reported == pytest.approx(expected.losses, rel=1e-5), "reported losses"
    whole = gathered([expected.state])
    assert state.keys() == whole.keys()
    compared = "model." if choice["optimizer"] == "sgd" else "optim."
    for name, value in state.items():
        if name.startswith(compared) and value.numel():
            largest, difference = whole[name].abs().max(), (value - whole[name]).abs().max()
            assert difference <= 1e-4 * largest, (
                f"{name}: differs by {difference:.1e} of {largest:.1e} at the end"
            )


def assert_all_same(workers: int, choices: list[Choice]) -> None:
    """Compares every choice, and then fails with all that differ."""
    of_ranks = run_workers(workers, train_both, choices, timeout_s=1100)
    problems = []
    for index, choice in enumerate(choices):
        expected = of_ranks[index % workers][index][0]
        assert expected is not None
        try:
            assert_same(choice, expected, [of_rank[index][1] for of_rank in of_ranks])
        except AssertionError as error:
            problems.append(f"{name_of(choice)}: {error}")
    assert not problems, "\n\n".join(problems)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("choices", [pytest.param(REPRESENTATIVES, id="representative")])
def test_some_combinations_train_like_one_process(choices):
    assert_all_same(4, choices)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(
    ("workers", "part"),
    [(workers, slice(first, None, number)) for workers, number in PARTS for first in range(number)],
)
def test_combinations_that_cover_all_pairs_train_like_one_process(workers, part):
    # Native ones first: DeepSpeed changes torch's functions as it is imported.
    of_workers = sorted(
        (choice for choice in matrix().chosen if choice["workers"] == str(workers)),
        key=lambda choice: choice["engine"],
    )
    assert_all_same(workers, of_workers[part])


@pytest.mark.distributed_exhaustive
def test_at_least_forty_combinations_have_every_pair_that_may_stand_together():
    found = matrix()
    assert len(found.chosen) >= 40
    assert {int(choice["workers"]) for choice in found.chosen} == {workers for workers, _ in PARTS}
    assert len({name_of(choice) for choice in found.chosen}) == len(found.chosen)
    covered = {(axis, value) for choice in found.chosen for axis, value in choice.items()}
    assert covered == {(axis, value) for axis, values in AXES.items() for value in values}
    together = {(choice["engine"], choice["tensor"]) for choice in found.chosen}
    assert together == {(engine, tensor) for engine in AXES["engine"] for tensor in AXES["tensor"]}


def differences_after(world: World, updates: int, *overrides: str) -> list[str]:
    """The parameters, moments and buffers of which ranks hold copies that differ."""
    recipe, training_step = tiny_step(world, *overrides)
    data = training_step.mesh.data
    for step in range(updates):
        batches = share_of(global_batch(recipe, step), data.rank, data.size, recipe.data.micro_batch)
        training_step.update(batches, step, False)
    return [str(difference) for difference in Replicas(world).differences(training_step.engine.state())]


@pytest.mark.distributed_exhaustive
def test_copies_are_equal_to_the_bit_after_twenty_updates():
    """Case 3: routers of tensor ranks drifted apart (pytorch/torchtitan#2387)."""
    drifting = {"tensor": "2", "router": "deepseek", "optimizer": "adamw", "sequence": "true"}
    overrides = overrides_of(PLAIN | drifting)
    assert run_workers(4, differences_after, 20, *overrides) == [[]] * 4
