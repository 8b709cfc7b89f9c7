"""`moe-train plan` from the command line: its figures, its refusals, and routers whose sizes it has to expect."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import tiny_recipe

from moe_train import cli
from moe_train.planner.trace import trace

TINY = str(Path(__file__).parents[2] / "tiny_model.yaml")


def test_a_plan_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", TINY, "--world", "2", "--json", "parallel.expert=2", "optim.kind=adamw"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # 59,424 parameters, of which 40,960 are experts' and a half of each kind is held here; AdamW counts its updates.
    assert plan["parameter_bytes"] == plan["gradient_bytes"] == 4 * 59424 // 2
    assert plan["optimizer_bytes"] == 2 * plan["parameter_bytes"] + 4 * 20
    assert plan["degrees"] == "data 2; experts: expert 2"
    rows = {(row["kind"], row["axis"]): row["number"] for row in plan["collectives"]}
    assert sum(number for (kind, _), number in rows.items() if kind == "all_to_all") == 2 * 5


def test_a_plan_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", TINY, "--world", "1"]) == 0
    output = capsys.readouterr().out
    assert "on 1 worker: 1; experts: 1\n" in output
    assert "  parameters                                   232 KiB\n" in output
    assert "collectives of an update: none" in output


@pytest.mark.parametrize(
    ("world", "overrides", "words"),
    [
        (
            "16",
            (),
            "data.global_batch=8: must be a multiple of the 16 data-parallel workers; use 16, or at most 8 "
            "data-parallel workers; parallel.tensor lowers their number.",
        ),
        ("4", ("parallel.expert=3",), "parallel.expert=3: must divide the number of workers, which is 4"),
        ("2", ("parallel.data=4",), "parallel.data=4: must equal the number of workers, which is 2"),
    ],
)
def test_what_cannot_run_is_refused_as_show_refuses_it(
    world: str, overrides: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", TINY, "--world", world, *overrides]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["show", TINY, "--workers", world, *overrides]) == 2
    assert words in capsys.readouterr().out


def test_an_imbalance_below_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", TINY, "--world", "2", "--imbalance", "0.5"])
    assert "0.5 is not a number of at least 1" in capsys.readouterr().err


def test_an_imbalance_beyond_all_rows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for degree, reach in ((1, "every worker has all experts"), (2, "all rows go to one worker then")):
        words = ["plan", TINY, "--world", "2", "--imbalance", "2.5", f"parallel.expert={degree}"]
        assert cli.main(words) == 2
        rule = f"--imbalance 2.5: must be at most parallel.expert={degree}, as {reach}; "
        assert rule in capsys.readouterr().err


def test_the_busiest_rank_has_more_rows_memory_and_work_until_the_capacity_limit() -> None:
    dropless = tiny_recipe("parallel.expert=2", "moe.capacity_factor=null")
    even, busy = (trace(dropless, 2, imbalance) for imbalance in (1.0, 2.0))
    assert busy.flops > even.flops
    assert busy.peak_bytes > even.peak_bytes
    limited = tiny_recipe("parallel.expert=2", "moe.capacity_factor=1.0")
    assert trace(limited, 2, 2.0).flops == trace(limited, 2, 1.0).flops


def test_microbatches_that_are_not_traced_cost_what_the_others_do() -> None:
    whole = tiny_recipe("data.global_batch=32", "data.micro_batch=8")
    fewer = trace(replace(whole, data=replace(whole.data, global_batch=24)), 1)
    assert fewer.microbatches == 3
    assert trace(whole, 1).flops * 3 == fewer.flops * 4
