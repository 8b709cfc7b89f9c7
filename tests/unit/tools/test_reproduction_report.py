"""What is measured is not measured again, and the report is made of result files alone."""

import json
import re
from dataclasses import replace

import pytest
from canned_results import canned
from reproduction.plan import Arm, Claim, Expectation, Plan, ReproductionError
from reproduction.report import collect, document
from reproduction.result import load, path_of, save
from reproduction.runs import Runner, Task

from moe_train.errors import RunError


@pytest.fixture
def plan(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("steps: 40\n")
    arms = {
        name: Arm(name, f"what {name} is", (f"seed={number}",), 10.0, base)
        for number, name in enumerate("ab")
    }
    expect = (Expectation("loss", "a", "lower", than="b"), Expectation("cv", "a", "lower", bound=0.4))
    claim = Claim(
        "sooner", 1, "A is better, than B", "Nobody.", ("a", "b"), expect, (), ("loss", "cv"), False, "All."
    )
    return Plan(arms, {"sooner": claim})


def _measure(plan, folder, losses):
    for name, of_seeds in losses.items():
        for seed, loss in enumerate(of_seeds):
            save(canned(plan.arms[name], seed, [5.0, loss]), folder)


def test_a_result_reads_back_as_it_was_written(plan, tmp_path):
    result = canned(plan.arms["a"], 1, [5.0, 4.25], extra={"bit_equal": True})
    save(result, tmp_path)
    assert load(tmp_path, plan.arms["a"], 1) == result
    assert load(tmp_path, plan.arms["a"], 2) is None
    path_of(tmp_path, "a", 1).write_text('{"arm": "a"}')
    with pytest.raises(ReproductionError, match=r"a\.seed1\.json: is not a result"):
        load(tmp_path, plan.arms["a"], 1)


def test_only_what_has_no_result_is_measured(plan, tmp_path, monkeypatch):
    folder, made = tmp_path / "results", []

    def run(self, task):
        made.append((task.arm.name, task.seed))
        return canned(task.arm, task.seed, [5.0, 4.0])

    monkeypatch.setattr(Runner, "run", run)
    save(canned(plan.arms["a"], 0, [5.0, 4.0]), folder)
    runner, arms = Runner(folder, tell=lambda line: None), list(plan.arms.values())
    runner.measure(runner.missing(arms, (0, 1)), jobs=1)
    assert made == [("b", 0), ("a", 1), ("b", 1)]
    assert runner.missing(arms, (0, 1)) == []
    # An arm that was changed is another arm.
    changed = Arm("a", "changed", ("seed=7",), 10.0, plan.arms["a"].base)
    assert runner.missing([changed], (0, 1)) == [Task(changed, 0), Task(changed, 1)]


def test_a_run_that_fails_does_not_keep_others_from_being_made(plan, tmp_path, monkeypatch):
    def run(self, task):
        if task.arm.name == "a":
            raise RunError("a, seed 0: ended with exit code 1")
        return canned(task.arm, task.seed, [5.0, 4.0])

    monkeypatch.setattr(Runner, "run", run)
    runner, arms = Runner(tmp_path, tell=lambda line: None), list(plan.arms.values())
    with pytest.raises(RunError, match="1 of 2 runs failed\na, seed 0: ended with exit code 1"):
        runner.measure(runner.missing(arms, (0,)), jobs=1)
    assert runner.missing(arms, (0,)) == [Task(plan.arms["a"], 0)]


def test_the_report_says_what_the_results_say(plan, tmp_path):
    _measure(plan, tmp_path, {"a": [4.0, 4.1, 4.2], "b": [4.5, 4.55, 4.75]})
    found = collect(plan, plan.claim("sooner"), tmp_path)
    text = document(plan, [found], {"sooner": "reproductions/sooner.svg"})
    # Differences -0.5, -0.45 and -0.55: mean -0.5, e = 0.05 / sqrt(3); the CV of [60, 20] is 0.5.
    assert "| loss of a is lower than b | assertion | -0.5000 | **met** | 0.0577 |" in text
    assert "| cv of a is lower than 0.4 | assertion | +0.1000 | contradicted | 0.0000 |" in text
    assert "**Verdict: holds in part.**" in text
    assert "| a | what a is | 4.1000 ± 0.1000 | 0.5000 ± 0.0000 | 3 |" in text
    assert "![losses and loads](reproductions/sooner.svg)" in text
    assert "Measured at commit cccccccccc, 2026-01-02 to 2026-01-02, 0.1 hours of CPU" in text
    (anchor,) = re.findall(r"\(#(.*?)\)", text)
    assert anchor == "1-a-is-better-than-b"


@pytest.mark.parametrize(
    ("roles", "verdict"),
    [
        (("assertion", "beside"), "holds here"),
        (("beside", "assertion"), "does not hold here"),
        (("figure", "assertion"), "does not hold here"),
    ],
)
def test_what_stands_beside_a_claim_is_shown_and_decides_nothing(plan, tmp_path, roles, verdict):
    _measure(plan, tmp_path, {"a": [4.0, 4.1, 4.2], "b": [4.5, 4.55, 4.75]})
    claim = plan.claim("sooner")  # its first row is met, its second contradicted
    expect = tuple(replace(item, role=role) for item, role in zip(claim.expect, roles, strict=True))
    text = document(plan, [collect(plan, replace(claim, expect=expect), tmp_path)], {})
    met = {"assertion": "**met**", "beside": "met", "figure": "not judged"}[roles[0]]
    assert f"| loss of a is lower than b | {roles[0]} | -0.5000 | {met} | 0.0577 |" in text
    assert f"| cv of a is lower than 0.4 | {roles[1]} | +0.1000 | contradicted | 0.0000 |" in text
    assert f"**Verdict: {verdict}.**" in text


def test_a_row_that_was_added_after_the_runs_says_so(plan, tmp_path):
    _measure(plan, tmp_path, {"a": [4.0, 4.1, 4.2], "b": [4.5, 4.55, 4.75]})
    claim = plan.claim("sooner")
    first = replace(claim.expect[0], added=True)
    text = document(plan, [collect(plan, replace(claim, expect=(first,)), tmp_path)], {})
    assert "| loss of a is lower than b | assertion, added later | -0.5000 | **met** | 0.0577 |" in text


def test_a_caveat_stands_beside_the_verdict_wherever_it_is_given(plan, tmp_path):
    _measure(plan, tmp_path, {"a": [4.0, 4.1, 4.2], "b": [4.5, 4.55, 4.75]})
    claim = replace(plan.claim("sooner"), caveat="too few steps")
    text = document(plan, [collect(plan, claim, tmp_path)], {})
    assert "| holds in part (too few steps) | 6 of 6 |" in text
    assert "**Verdict: holds in part (too few steps).**" in text


def test_what_was_not_run_is_called_so(plan, tmp_path):
    assert "| not yet run | 0 of 6 |" in document(plan, [collect(plan, plan.claim("1"), tmp_path)], {})
    _measure(plan, tmp_path, {"a": [4.0, 4.1, 4.2], "b": [4.5]})
    found = collect(plan, plan.claim("1"), tmp_path)
    text = document(plan, [found], {})
    assert "| not yet run as a whole | 4 of 6 |" in text
    assert "| loss of a is lower than b | assertion | - | not yet run | - |" in text


def test_results_on_different_texts_are_not_compared(plan, tmp_path):
    save(canned(plan.arms["a"], 0, [4.0]), tmp_path)
    save(canned(plan.arms["b"], 0, [4.0], text_hash="another"), tmp_path)
    with pytest.raises(ReproductionError, match="2 different texts"):
        collect(plan, plan.claim("1"), tmp_path)


def test_the_charts_of_the_same_results_are_the_same_files(plan, tmp_path):
    pytest.importorskip("matplotlib")
    from reproduction.charts import cv_curve, draw, loss_curve

    results = {name: [canned(plan.arms[name], seed, [5.0, 4.0]) for seed in range(2)] for name in "ab"}
    for number in range(2):
        draw(tmp_path / f"{number}.svg", results, over_flops=False)
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()
    assert loss_curve(results["a"][0], over_flops=True) == [(8000 / 1e12, 5.0), (16000 / 1e12, 4.0)]
    assert cv_curve(results["a"][0]) == [(10, 0.5), (20, 0.5)]


def test_the_committed_results_are_small_and_name_their_origin():
    from reproduce import RESULTS
    from reproduction.plan import SEEDS, read_plan

    arms = read_plan().arms
    for path in RESULTS.glob("*.json"):
        assert path.stat().st_size < 40_000
        entry = json.loads(path.read_text())
        assert re.fullmatch("[0-9a-f]{40}", entry["commit"])
        assert entry["seed"] in SEEDS
        assert load(RESULTS, arms[entry["arm"]], entry["seed"]) is not None, (
            f"{path} is of an arm that has changed"
        )
