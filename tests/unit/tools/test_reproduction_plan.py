"""The arms and claims as they are committed: they fit together, into the budget, and keep to the rules of fairness."""

import shutil
from operator import attrgetter
from typing import get_args

import pytest
import reproduce
import yaml
from reproduction import runs
from reproduction.flops import planned
from reproduction.measures import COMPARISONS, MEASURES
from reproduction.plan import FLOPS_TOLERANCE, HERE, SEEDS, ReproductionError, Role, read_plan

from moe_train.config.check import problems
from moe_train.errors import MoETrainError

PLAN = read_plan()
BUDGET_MINUTES, ALL_CORE_HOURS = 90, 8.5


@pytest.fixture(scope="module")
def recipes():
    return {name: arm.recipe(0) for name, arm in PLAN.arms.items()}


def test_every_arm_is_sound_and_unlike_every_other_and_used(recipes):
    for name, arm in PLAN.arms.items():
        assert problems(recipes[name], 1) == [], name
        if "hard_step" in str(arm.overrides):  # what counts in steps is shortened too
            assert problems(runs.shortened(arm, 4).recipe(0), 1) == [], name
    assert len({str((recipe, PLAN.arms[name].poison)) for name, recipe in recipes.items()}) == len(recipes)
    assert {name for claim in PLAN.claims.values() for name in claim.arms} == set(recipes)


SHARED = (
    "data",
    "precision",
    "seed",
    "moe.eval_capacity_factor",
    "optim.schedule.kind",
    "decoding",
    "job.threads",
)


@pytest.mark.parametrize("base", sorted({arm.base.name for arm in PLAN.arms.values()}))
def test_arms_share_all_but_what_is_compared(recipes, base):
    of_base = {name: recipe for name, recipe in recipes.items() if PLAN.arms[name].base.name == base}
    for key in SHARED:
        assert len({str(attrgetter(key)(recipe)) for recipe in of_base.values()}) == 1, key
    assert all(recipe.moe.eval_capacity_factor is None for recipe in of_base.values())
    passes = {
        recipe.steps * recipe.objective.num_passes
        for name, recipe in of_base.items()
        if not name.startswith("stable")
    }
    assert len(passes) == 1


def test_every_claim_can_be_judged():
    numbers = [claim.number for claim in PLAN.claims.values()]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13}
    for claim in PLAN.claims.values():
        assert claim.limits
        assert set(claim.show) <= set(MEASURES)
        for item in claim.expect:
            assert item.measure in (COMPARISONS.keys() | MEASURES.keys() if item.than else MEASURES)
            assert item.relation in ("lower", "higher", "at_most", "close")
            assert item.role in get_args(Role)
            assert (item.within > 0) == (item.relation in ("at_most", "close"))


def test_arms_that_are_compared_at_equal_flops_have_equal_flops(recipes):
    for claim in PLAN.claims.values():
        flops = [planned(recipes[name]) for name in claim.equal_flops]
        assert not flops or max(flops) <= (1 + FLOPS_TOLERANCE) * min(flops), claim.name


def test_the_estimates_stay_within_the_budget():
    for claim in PLAN.claims.values():
        seconds = len(SEEDS) * sum(PLAN.arms[name].seconds for name in claim.arms)
        assert seconds / 60 / 2 <= BUDGET_MINUTES, claim.name
    assert len(SEEDS) * sum(arm.seconds for arm in PLAN.arms.values()) / 3600 <= ALL_CORE_HOURS


def test_only_committed_code_is_measured(monkeypatch):
    answers = {"status": " M moe_train/trainer.py", "rev-parse": "0123"}
    monkeypatch.setattr(runs, "_git", lambda command, *rest: answers[command])
    with pytest.raises(
        ReproductionError, match=r"M moe_train/trainer.py.*commit, or measure in a clean clone"
    ):
        runs.current_commit()
    answers["status"] = ""
    assert runs.current_commit() == "0123"


def test_a_wrong_claim_is_one_message(monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    assert reproduce.main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: claim=nonsense: there is no such claim; one of switch_against_dense,"
    )


def test_a_claim_that_nothing_could_decide_is_refused(tmp_path):
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "claims" / "hash.yaml"
    claim = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(claim | {"expect": [row | {"role": "beside"} for row in claim["expect"]]}))
    with pytest.raises(ReproductionError, match="claim=hash: none of its rows has the role assertion"):
        read_plan(tmp_path)


def test_a_claim_has_a_name_and_a_number():
    assert PLAN.claim("hash") is PLAN.claim("6")
    with pytest.raises(ReproductionError, match="claim=12: there is no such claim; one of"):
        PLAN.claim("12")
    assert issubclass(ReproductionError, MoETrainError)
