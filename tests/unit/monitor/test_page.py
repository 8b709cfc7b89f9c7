"""The page: what it holds, what a real browser makes of it, and that it needs nothing from outside."""

import html
import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

from moe_train.callbacks.jsonl import encode_row
from moe_train.config.load import load_recipe, to_yaml
from moe_train.config.schema import Recipe
from moe_train.errors import MoETrainError, RunError, UsageError
from moe_train.monitor import balance
from moe_train.monitor.commands import main
from moe_train.monitor.page.content import grouped, page_content
from moe_train.monitor.page.document import render_page, write_page
from moe_train.monitor.run import find_run, read_run

HOSTILE = "</title><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028 & \"quotes\""
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
    "--window-size=1180,2000",
    "--dump-dom",
]


def train(step: int, *loads: list[int], attempt: int = 1) -> dict[str, Any]:
    dropped = [0] * len(loads)
    return {
        "step": step,
        "attempt": attempt,
        "loss": 8.0 - step / 100,
        "lr": step * 1e-5,
        "grad_norm": 1.5,
        "tokens_per_second": 12345.0,
        "memory_bytes": 3 * 2**29,
        "moe": {
            "load": list(loads),
            "dropped": dropped,
            "cv": [balance.cv(load) for load in loads],
            "max_violation": [balance.max_violation(load) for load in loads],
            "entropy": [balance.load_entropy(load) for load in loads],
            "dead_fraction": [balance.dead_fraction(load) for load in loads],
            "drop_rate": [0.0 if sum(load) else math.nan for load in loads],
            "router_top_probability": [0.625 if sum(load) else math.nan for load in loads],
            "experts_per_token": [2.0 if sum(load) else math.nan for load in loads],
        },
    }


CURVES = ("Learning rate", "Gradient norm", "Memory (GiB)")
EVEN, ONE_DEAD, NOTHING = [4, 4, 4, 4], [8, 8, 8, 0], [0, 0, 0, 0]
ROWS = [
    {"event": "start", "step": 0, "attempt": 1},
    {"step": 0, "attempt": 1, "validation_loss": 8.25},
    train(10, EVEN, EVEN),
    train(20, EVEN, EVEN),
    {"event": "checkpoint", "step": 10, "attempt": 1},
    {"event": "resume", "step": 10, "attempt": 2},
    train(20, NOTHING, EVEN, attempt=2),
    train(30, EVEN, ONE_DEAD, attempt=2),
    {"step": 30, "attempt": 2, "validation_loss": 7.75},
    {"event": "stopped", "step": 30, "attempt": 2},
]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder: 4 layers of which 2 are MoE layers, 4 experts."""

    def make(rows: list[dict[str, Any]], every: int = 2, name: str = "tiny") -> Path:
        recipe = Recipe(name=name, steps=100, paper=HOSTILE)
        recipe.moe.every, recipe.moe.num_experts = every, 4
        run_dir = tmp_path / "run"
        (run_dir / "attempts" / "2" / "rank-0").mkdir(parents=True)
        (run_dir / "attempts" / "2" / "rank-1").mkdir()
        (run_dir / "attempts" / "1" / "rank-0").mkdir(parents=True)
        (run_dir / "attempts/2/outcome.json").write_text(json.dumps({"exit_code": 75, "cause": None}))
        (run_dir / "recipe.yaml").write_text(to_yaml(recipe))
        if rows:
            (run_dir / "metrics.jsonl").write_bytes(b"".join(encode_row(row) for row in rows))
        return run_dir

    return make


def rendered(page: Path, tmp_path: Path) -> str:
    """The document as Chromium has it once the page's script ran."""
    chromium = require_tool("chromium", "chromium")
    command = [chromium, *CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_chromium_draws_layers_of_two_and_of_four_experts(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = make_run([train(10, [4, 4], [8, 8, 8, 0]), train(20, [8, 0], [4, 4, 4, 4])])
    recipe = load_recipe(run_dir / "recipe.yaml")
    recipe.moe.num_experts = [2, 4]
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe))
    page = tmp_path / "page.html"
    write_page(read_run(run_dir), page)
    cells = re.findall(r'<rect [^>]*data-layer="(\d)" data-expert="(\d)" fill="', rendered(page, tmp_path))
    assert cells == [("0", "0"), ("0", "1"), *(("1", str(expert)) for expert in range(4))]


def test_chromium_draws_every_figure_of_a_run_that_resumed(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    write_page(read_run(make_run(ROWS, name=HOSTILE)), page)
    document = rendered(page, tmp_path)
    assert html.escape(HOSTILE, quote=False) in document
    assert f"<title>{html.escape(HOSTILE, quote=False)}</title>" in document
    assert "<img" not in document
    assert document.count('class="resume"') == 10  # one in each line chart
    assert document.count('class="checkpoint"') == 10
    cells = re.findall(r'<rect [^>]*data-layer="(\d)" data-expert="(\d)" fill="([^"]+)"', document)
    assert [(layer, expert) for layer, expert, _ in cells] == [
        (str(i), str(e)) for i in range(2) for e in range(4)
    ]
    colors = [fill for _, _, fill in cells]
    assert colors[:4] == [colors[0]] * 4  # an even layer is of one colour
    assert colors[7] == "#c2185b"  # the dead expert's
    assert 'aria-label="Experts of layer 3 over 3 windows"' in document  # the most uneven layer comes first
    assert '<output id="window-step">30</output>' in document
    assert '<td class="alarm">1</td><td>3</td>' in document
    names = re.findall(r'class="series" d="M[^"]+" stroke="[^"]+" data-name="([^"]+)"', document)
    assert names == ["training", "validation", *CURVES] + ["layer 1", "layer 3"] * 6
    assert "of 100: stopped" in document
    assert "1 resumed" in document


def test_chromium_shows_a_dense_run_and_says_that_it_has_no_experts(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    write_page(read_run(make_run([train(10), train(20)], every=0)), page)
    document = rendered(page, tmp_path)
    assert "This model is dense: it has no experts to show." in document
    assert 'data-name="training"' in document
    assert "<rect" not in document
    assert '<section class="card" id="experts-card" hidden="">' in document


def test_chromium_shows_a_run_that_has_no_rows_yet(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(read_run(make_run([])), page)
    document = rendered(page, tmp_path)
    assert "No training row has been written yet" in document
    assert "of 100: stopped" in document


def test_the_page_names_nothing_outside_itself(make_run: Callable[..., Path]) -> None:
    page = render_page(read_run(make_run(ROWS)))
    assert not re.search(r"<link|<script[^>]+src|@import|url\(|fetch\(", page)
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}


def test_a_hostile_name_stays_text(make_run: Callable[..., Path]) -> None:
    page = render_page(read_run(make_run([], name=HOSTILE)))
    assert "<script>document" not in page
    assert "<img" not in page
    assert f"<title>{html.escape(HOSTILE)}</title>" in page
    embedded = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(embedded)["paper"] == HOSTILE


def test_the_page_tells_of_workers_attempts_and_what_counts(make_run: Callable[..., Path]) -> None:
    content = page_content(read_run(make_run(ROWS)))
    tiles = {tile["label"]: (tile["value"], tile["note"]) for tile in content["tiles"]}
    assert tiles["Workers"] == ("2", "expert degree 1")
    assert tiles["Attempts"] == ("2", "1 resumed")
    assert tiles["Step"][0] == "30"
    assert tiles["Validation loss"] == ("7.7500", "at step 30")
    assert content["train"]["steps"] == [10, 20, 30]
    assert content["windows"]["loads"][1] == [[None] * 4, [100] * 4]
    assert content["windows"]["loads"][2] == [[100] * 4, [133, 133, 133, 0]]
    assert content["figures"][0]["values"][1] == [None, 0.0]


def test_a_figure_that_no_row_has_a_value_for_is_not_drawn(make_run: Callable[..., Path]) -> None:
    """A router without a distribution has no probability, and rows of an older moe-train lack the key."""
    with_none, older = train(10, EVEN, EVEN), train(20, EVEN, EVEN)
    with_none["moe"]["router_top_probability"] = [math.nan, math.nan]
    del older["moe"]["router_top_probability"], older["moe"]["experts_per_token"]
    figures = {
        figure["key"]: figure["values"]
        for figure in page_content(read_run(make_run([with_none, older])))["figures"]
    }
    assert "router_top_probability" not in figures
    assert figures["experts_per_token"] == [[2.0, 2.0], [None, None]]


def test_the_curves_of_the_run_are_drawn_where_rows_have_them(make_run: Callable[..., Path]) -> None:
    older = train(20, EVEN, EVEN)
    del older["memory_bytes"], older["lr"], older["grad_norm"]
    curves = page_content(read_run(make_run([train(10, EVEN, EVEN), older])))["curves"]
    assert {curve["title"]: curve["values"] for curve in curves} == {
        "Learning rate": [1e-4, None],
        "Gradient norm": [1.5, None],
        "Memory (GiB)": [1.5, None],
    }


def test_the_curves_of_the_run_are_not_drawn_where_no_row_has_them(make_run: Callable[..., Path]) -> None:
    older = train(20, EVEN, EVEN)
    del older["memory_bytes"], older["lr"], older["grad_norm"]
    assert page_content(read_run(make_run([older])))["curves"] == []


def test_many_rows_are_put_together_and_the_page_says_so(make_run: Callable[..., Path]) -> None:
    rows = [train(step, EVEN, [step % 2, 2, 2, 2]) for step in range(1, 4002)]
    content = page_content(read_run(make_run(rows)))
    assert len(content["train"]["steps"]) == 1334
    assert content["train"]["steps"][-1] == 4001
    assert content["train"]["loss"][0] == pytest.approx(8.0 - 0.02)  # mean of steps 1, 2, 3
    assert "Each point of a curve is the mean of 3 rows." in content["footer"]


def test_groups_lose_no_row() -> None:
    rows = [{"step": step} for step in range(7)]
    assert [len(group) for group in grouped(rows, 3)] == [3, 3, 1]
    assert [row for group in grouped(rows, 3) for row in group] == rows
    assert grouped([], 3) == []


def test_the_summary_shows_the_last_window(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(make_run(ROWS))]) == 0
    out = capsys.readouterr().out
    assert "run: stopped" in out
    assert (
        "step 30 of 100, loss 7.7000, validation loss 7.7500, lr 0.0003, gradient norm 1.5, 12,345 tokens/s, "
        "1.50 GiB, attempts: 2, resumes: 1" in out
    )
    figures = ("0.577", "0.354", "0.33", "0.792", "3.0 of 4", "0.0%", "1", "0.62", "2.00")
    assert re.search(" +".join(map(re.escape, ("layer 3", *figures))), out)


def test_the_summary_fits_on_80_characters_where_figures_are_wide(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = train(10, [1] * 128, [1] * 127 + [0])
    row["moe"] |= {"drop_rate": [0.451, 1.0], "experts_per_token": [10.25, 10.25], "cv": [11.273, 11.273]}
    assert main([str(make_run([row]))]) == 0
    table = capsys.readouterr().out.partition("experts over")[2]
    assert "…" not in table
    assert re.search(r"effective +rate", table)
    assert re.search(r"layer 1 +11.273 .* 128.0 of 128 +45.1% .* 10.25 *\n", table)
    assert re.search(r"layer 3 +11.273 .* 127.0 of 128 +100.0% .* 10.25 *\n", table)


def test_the_summary_of_a_row_without_a_figure_has_a_dash(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    older = train(10, EVEN, EVEN)
    del older["moe"]["router_top_probability"], older["moe"]["experts_per_token"]
    assert main([str(make_run([older]))]) == 0
    assert re.search(r"layer 3 .* 0 +- +- *\n", capsys.readouterr().out)


@pytest.mark.parametrize(("rows", "said"), [([], "no training row"), ([train(10)], "this model is dense")])
def test_the_summary_of_a_run_with_nothing_to_show_says_so(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], said: str
) -> None:
    assert main([str(make_run(rows, every=0))]) == 0
    assert said in capsys.readouterr().out


def test_a_run_is_found_by_its_name_below_runs(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(ROWS)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert find_run("tiny") == Path("runs/tiny")
    with pytest.raises(UsageError, match=r"RUN=tinny.*known runs: tiny"):
        find_run("tinny")


def test_a_page_that_cannot_be_written_is_a_named_error(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = make_run(ROWS)
    with pytest.raises(RunError, match=r"--html=.*cannot be written") as caught:
        main([str(run_dir), "--html", str(tmp_path)])
    assert isinstance(caught.value, MoETrainError)
