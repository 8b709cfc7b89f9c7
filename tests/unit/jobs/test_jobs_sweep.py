"""Which runs a sweep stands for."""

import pytest

from moe_train.errors import UsageError
from moe_train.jobs.sweep import combinations, values


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=0,1,2", ["seed=0", "seed=1", "seed=2"]),
        ("seed=0", ["seed=0"]),
        ("data.corpus.suffixes=[.md,.txt]", ["data.corpus.suffixes=[.md,.txt]"]),
        ("a=[1,2],[3]", ["a=[1,2]", "a=[3]"]),
        ("a={x: 1, y: 2},null", ["a={x: 1, y: 2}", "a=null"]),
        ("name='a,b',c", ["name='a,b'", "name=c"]),
    ],
)
def test_commas_outside_brackets_and_quotes_separate_values(override: str, expected: list[str]) -> None:
    assert values(override) == expected


def test_every_combination_is_a_run_named_by_what_varies() -> None:
    found = combinations(["steps=5", "seed=0,1", "optim.lr=1e-3,2e-3"])
    assert [name for name, _ in found] == [
        "seed=0,optim.lr=1e-3",
        "seed=0,optim.lr=2e-3",
        "seed=1,optim.lr=1e-3",
        "seed=1,optim.lr=2e-3",
    ]
    assert found[2][1] == ("steps=5", "seed=1", "optim.lr=1e-3")


def test_a_name_never_leaves_the_sweeps_folder() -> None:
    (first, _), (second, _) = combinations(["data.corpus.path=../../a,/etc"])
    assert "/" not in first + second


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["seed=0"], "no key has several values"),
        (["seed=1,1"], "two runs would share a folder"),
        (["a=/x,_x"], "two runs would share a folder"),
        ([f"name={'a' * 200},b"], "is no name for a folder"),
    ],
)
def test_a_sweep_that_is_none_is_refused(overrides: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        combinations(overrides)
