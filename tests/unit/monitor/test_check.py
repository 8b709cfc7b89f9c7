"""`moe-train monitor RUN --check` over run folders of any origin, whole and damaged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from made_rows import EVEN, recipe_of, row

from moe_train import cli
from moe_train.config.load import to_yaml
from moe_train.monitor.alarm import Alarm, Case, Rise
from moe_train.monitor.detectors.group import DETECTORS
from moe_train.monitor.explain import event

DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
ROUTERS = {
    "switch": (),
    "top_k": ("moe.router.k=1", "moe.router.normalize=true", "moe.router.balance_coefficient=0"),
    "deepseek": DROPLESS,
    "noisy_top_k": (),
    "hash": (),
    "smear": DROPLESS,
}
DEAD = [290, 0, *[290] * 6]
HEALTHY = [row(step) for step in range(10, 400, 10)]
SICK = [row(step, EVEN, DEAD if step > 200 else EVEN) for step in range(10, 400, 10)]


def folder(tmp_path: Path, rows: list[dict[str, Any]], recipe: str | None = None) -> Path:
    """A run folder with these rows."""
    (tmp_path / "recipe.yaml").write_text(recipe or to_yaml(recipe_of()))
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    return tmp_path


def checked(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code and what was printed on standard output."""
    code = cli.main(["monitor", str(run), "--check", *words])
    return code, capsys.readouterr().out


def test_a_healthy_run_ends_with_0_and_says_what_was_not_measured(tmp_path, capsys):
    code, text = checked(folder(tmp_path, HEALTHY), capsys)
    assert code == 0
    assert "nothing is wrong in 39 rows" in text
    assert "not measured: unlearning_router: no row has router_gradient_norm" in text


def test_a_sick_run_ends_with_3_and_says_what_why_and_what_to_do(tmp_path, capsys):
    recipe = to_yaml(recipe_of("moe.router.balance_coefficient=0"))
    code, text = checked(folder(tmp_path, SICK, recipe), capsys)
    assert code == 3
    assert "step 230: warning, dead_experts" in text
    assert "layer 3: expert 1 has less than a tenth of the fair share" in text
    assert "why: nothing keeps the loads even: moe.router.balance_coefficient=0" in text
    assert "raise moe.router.balance_coefficient=0, to 0.01" in text


def test_as_json_an_alarm_has_every_field(tmp_path, capsys):
    code, text = checked(folder(tmp_path, SICK), capsys, "--json")
    assert code == 3
    (alarm,) = json.loads(text)["alarms"]
    assert alarm.keys() == {
        *("step", "detector", "severity", "layers", "experts", "since", "value", "limit"),
        *("message", "causes", "advice"),
    }
    assert (alarm["detector"], alarm["layers"], alarm["experts"]) == ("dead_experts", [1], [1])


def test_an_alarm_that_is_over_says_since_when(tmp_path, capsys):
    code, text = checked(
        folder(tmp_path, [*SICK, *(row(step) for step in range(400, 500, 10))]), capsys, "--json"
    )
    assert code == 3
    (alarm,) = json.loads(text)["alarms"]
    assert alarm["over"] == 420


def test_a_compressed_file_is_read(tmp_path, capsys):
    run = folder(tmp_path, SICK)
    (run / "metrics.jsonl.gz").write_bytes(gzip.compress((run / "metrics.jsonl").read_bytes()))
    (run / "metrics.jsonl").unlink()
    assert checked(run, capsys)[0] == 3
    whole = (run / "metrics.jsonl.gz").read_bytes()
    (run / "metrics.jsonl.gz").write_bytes(whole[:-20])
    assert cli.main(["monitor", str(run), "--check"]) != 0
    assert "is not a whole gzip file" in capsys.readouterr().err


def test_keys_of_a_newer_version_are_passed_over_and_said(tmp_path, capsys, caplog):
    recipe = to_yaml(recipe_of()) + "of_tomorrow: {a: 1}\n"
    code, _ = checked(
        folder(tmp_path, SICK, recipe.replace("  jitter:", "  of_tomorrow: 3\n    jitter:")), capsys
    )
    assert code == 3
    assert "of_tomorrow" in caplog.text


BAD_ROWS = {
    "no moe": {"step": 55, "loss": 4.0},
    "a text for a number": {"step": 55, "loss": "four", "moe": {"load": [EVEN, EVEN]}},
    "another number of layers": row(55, EVEN),
    "another number of experts": row(55, EVEN[:4], EVEN[:4]),
    "a text for an attempt": {"step": 55, "attempt": "second", "loss": 4.0, "moe": {"load": [EVEN, EVEN]}},
    "a text for a step": {"step": "55", "loss": 4.0, "moe": {"load": [EVEN, EVEN]}},
    "a number for a list": {"step": 55, "loss": 4.0, "moe": {"load": 3}},
    "a text for a load": {"step": 55, "loss": 4.0, "moe": {"load": [["x"] * 8, EVEN]}},
    "null for a load": row(55, [None] * 8, EVEN),
    "no loads": {"step": 55, "loss": 4.0, "moe": {"load": []}},
    "a figure of texts": row(55, drop_rate=["a", "b"]),
    "a row of nulls": {"step": 55, "loss": None, "lr": None, "grad_norm": None, "moe": None},
    "a list": [1, 2],
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_is_not_one_is_passed_over_without_a_traceback(name, tmp_path, capsys):
    rows = [*SICK[:5], BAD_ROWS[name], *SICK[5:]]
    code, text = checked(folder(tmp_path, rows), capsys, "--json")
    assert code == 3
    found = {alarm["detector"] for alarm in json.loads(text)["alarms"]}
    assert found <= {"dead_experts", "not_finite"}
    assert "dead_experts" in found


def test_a_torn_last_line_and_a_clock_that_jumps_change_nothing(tmp_path, capsys):
    rows = [{**each, "time": 1e9 - each["step"] * 1000} for each in SICK]
    run = folder(tmp_path, rows)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "lo')
    assert checked(run, capsys)[0] == 3


def test_json_without_check_is_refused(tmp_path, capsys):
    assert cli.main(["monitor", str(folder(tmp_path, SICK)), "--json"]) == 2
    assert "--json: goes with --check" in capsys.readouterr().err


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: detector.name)
def test_every_alarm_has_words_whatever_the_router(detector):
    for kind, others in ROUTERS.items():
        recipe = recipe_of(f"moe.router.kind={kind}", *others, "parallel.expert=2")
        if not detector(recipe).applies:
            continue
        for layers, experts in (([], []), ([1], [3]), ([0, 1], [])):
            alarm = Alarm(detector.name, "warning", layers, experts, 11, 0.5, 0.1)
            told = event(Case(alarm, recipe, row(40, losses={"balance": 2.0}), Rise(20, 1e-3, 1e-2)))
            assert told["message"].endswith("since step 11")
            assert told["causes"][0] == "the learning rate rose from 0.001 to 0.01 at step 20"
            sentences = [told["message"], *told["causes"], *told["advice"]]
            assert all(isinstance(sentence, str) and len(sentence) > 10 for sentence in sentences)
            assert not any("None" in sentence for sentence in sentences)
