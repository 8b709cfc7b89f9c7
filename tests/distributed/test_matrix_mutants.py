"""The comparison of the matrix finds deliberate errors: each mutant trains otherwise than one process.

Without the error the same combination trains like one process, so it is the error that is found.
"""

import pytest
from gloo_workers import run_workers
from layout_run import LayoutRun, train
from matrix import overrides_of
from mutants import MUTANTS, Mutant
from test_matrix import assert_same, train_both

from moe_train.parallel.world import World

Runs = tuple[LayoutRun | None, LayoutRun, LayoutRun]


def train_three(world: World, names: list[str]) -> list[Runs]:
    """For each mutant the run of one process, which one rank makes, a sound run here, and one with the error."""
    mutants = [MUTANTS[name] for name in names]
    sound = train_both(world, [mutant.choice for mutant in mutants])
    return [(*both, train_with(world, mutant)) for both, mutant in zip(sound, mutants, strict=True)]


def train_with(world: World, mutant: Mutant) -> LayoutRun:
    with pytest.MonkeyPatch.context() as patch:
        mutant.make(patch)
        return train(world, *overrides_of(mutant.choice))


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Runs]]:
    """The runs of two ranks, in one process group. DeepSpeed's come last."""
    names = sorted(MUTANTS, key=lambda name: MUTANTS[name].choice["engine"])
    of_ranks = run_workers(2, train_three, names, timeout_s=1100)
    return {name: [of_rank[index] for of_rank in of_ranks] for index, name in enumerate(names)}


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("name", MUTANTS)
def test_an_error_is_found(runs, name):
    mutant, of_ranks = MUTANTS[name], runs[name]
    expected = next(alone for alone, _, _ in of_ranks if alone is not None)
    assert_same(mutant.choice, expected, [sound for _, sound, _ in of_ranks])
    with pytest.raises(AssertionError) as found:
        assert_same(mutant.choice, expected, [broken for _, _, broken in of_ranks])
    assert found.match(mutant.found_by)
