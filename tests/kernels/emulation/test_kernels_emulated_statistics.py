"""The CUDA kernels of router statistics and load balancing, emulated, against a plain serial computation.

The driver compares choices, positions and counts exactly and sums within rounding, looks for writes beside the results,
and runs the router twice for equal bits, in another order of blocks and threads. test_kernels_router.py and
test_kernels_balance.py compare the same kernels with the torch references.
"""

import itertools

import emulated_programs
import pytest
from statistics_mutations import PLAIN_RUNS

from moe_kernels.build import SOURCES


@pytest.fixture(scope="module")
def driver():
    return emulated_programs.build(emulated_programs.STATISTICS)


@pytest.mark.parametrize("case", PLAIN_RUNS)
def test_statistics_are_those_of_the_serial_computation(driver, case):
    done = emulated_programs.run(driver, *case.split(), blocks=2)
    assert done.word == "right", done.output


ROUTERS = [
    *itertools.product((1, 97), (1, 2, 31, 33, 64, 129, 1024), (1, 2, 8), (0, 1)),
    *itertools.product((4300,), (1, 33), (2,), (0, 1)),
]
LIMITS = list(itertools.product((1, 255, 1025), (1, 256, 2000), (1, 4, 8), (0, 1)))


@pytest.mark.sanitizer
@pytest.mark.parametrize(("tokens", "experts", "choices", "bias"), ROUTERS)
def test_the_router_in_every_size(driver, tokens, experts, choices, bias):
    shape = f"what=router tokens={tokens} experts={experts} choices={choices} bias={bias}"
    for seed, score in enumerate(("softmax", "sigmoid")):
        done = emulated_programs.run(driver, *shape.split(), f"score={score}", f"seed={seed}", seed=seed)
        assert done.word == "right", (shape, score, done.output)


@pytest.mark.sanitizer
@pytest.mark.parametrize(("tokens", "group", "choices", "priority"), LIMITS)
def test_the_capacity_limit_in_every_size(driver, tokens, group, choices, priority):
    shape = f"what=capacity tokens={tokens} group={group} choices={choices} priority={priority}"
    for seed, (experts, capacity) in enumerate(((1, 3), (5, 50), (1024, 1))):
        limits = f"experts={experts} capacity={capacity} seed={seed}"
        done = emulated_programs.run(driver, *shape.split(), *limits.split(), seed=seed, blocks=1 + seed)
        assert done.word == "right", (shape, limits, done.output)


@pytest.mark.parametrize(("streams", "count"), [(3, 5000), (1, 2048), (5, 1), (2, 0)])
def test_uniform_numbers_of_any_count(driver, streams, count):
    done = emulated_programs.run(driver, "what=uniform", f"streams={streams}", f"count={count}", blocks=2)
    assert done.word == "right", done.output


def test_every_kernel_file_has_a_driver():
    programs = (emulated_programs.EXCHANGE, emulated_programs.STATISTICS)
    driven = [file for program in programs for files in program.kernels for file in files]
    assert sorted(driven) == sorted(path.name for path in SOURCES.glob("*.cu"))
