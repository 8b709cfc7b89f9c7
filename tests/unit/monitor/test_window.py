"""The window's counts are exact, for one rank and several, and survive a resume."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from moe_train.callbacks.jsonl import encode_row
from moe_train.moe.figures import MEANS, TOTALS
from moe_train.monitor.window import LoadWindow
from moe_train.parallel.axis import Axis
from moe_train.results import MoEStats

CPU = torch.device("cpu")
ALONE = Axis()


def stats(
    load: list[int],
    dropped: int = 0,
    entropy: float = 0.0,
    tokens: int | None = None,
    top: float = 0.0,
    **others: float,
) -> MoEStats:
    """Of `tokens` tokens; None: one for each assignment. What is not given is 0."""
    counted = (figure.name for figure in (*TOTALS, *MEANS) if figure.count is not None)
    values = dict.fromkeys(counted, 0) | {
        "load": load,
        "dropped": dropped,
        "tokens": sum(load) if tokens is None else tokens,
        "router_entropy": entropy,
        "router_top_probability": top,
        **others,
    }
    return MoEStats({name: torch.tensor(value) for name, value in values.items()}, {}, {})


def test_microbatches_steps_and_layers_add_up() -> None:
    window = LoadWindow([3, 3], CPU)
    window.add(
        (
            (stats([3, 1, 0], 1, 2.0), stats([0, 0, 4], 2, 1.0)),
            (stats([2, 2, 0], 0, 2.0), stats([4, 0, 0], 0, 3.0)),
        ),
        step=1,
    )
    window.add(((stats([0, 0, 8], 4, 4.0), stats([1, 1, 6], 0, 4.0)),), step=2)
    summary = window.reduce(ALONE, {"loss": torch.tensor(2.5)})
    row = summary.as_row()
    assert row["load"] == [[5, 3, 8], [5, 1, 10]]
    assert row["dropped"] == [5, 2]
    assert row["router_entropy"] == [0.5, 0.5]
    assert summary.scalars == {"loss": 2.5}


def test_a_row_has_every_figure_of_every_layer() -> None:
    window = LoadWindow([4], CPU)
    window.add(((stats([8, 4, 4, 0], 4, 16.0, top=10.0),),), step=1)
    row = window.reduce(ALONE, {}).as_row()
    assert row["load"] == [[8, 4, 4, 0]]
    assert row["dropped"] == [4]
    assert row["cv"] == [pytest.approx(math.sqrt(0.5))]
    assert row["max_violation"] == [1.0]
    assert row["entropy"] == [pytest.approx(0.75)]
    assert row["dead_fraction"] == [0.25]
    assert row["drop_rate"] == [0.25]
    assert row["router_entropy"] == [1.0]
    assert row["router_top_probability"] == [0.625]
    assert row["experts_per_token"] == [0.75]


def test_the_entropy_of_a_layer_is_a_mean_over_the_tokens_that_came_to_it() -> None:
    """Those of an encoder and of its decoder are not equally many, and padding is none."""
    window = LoadWindow([2, 2], CPU)
    window.add(((stats([8, 0], 0, 4.0), stats([2, 2], 0, 4.0, tokens=2)),), step=1)
    assert window.reduce(ALONE, {}).as_row()["router_entropy"] == [0.5, 2.0]


def test_tokens_of_two_experts_that_lose_one_of_four_have_one_and_a_half() -> None:
    """Layer 0: 4 tokens of 8 assignments, of which 2 are beyond the limit; layer 1: 2 tokens, one expert each."""
    window = LoadWindow([4, 4], CPU)
    window.add(((stats([4, 2, 1, 1], 2, tokens=4, top=3.0), stats([2, 0, 0, 0], tokens=2)),), step=1)
    row = window.reduce(ALONE, {}).as_row()
    assert row["experts_per_token"] == [1.5, 1.0]
    assert row["router_top_probability"] == [0.75, pytest.approx(math.nan, nan_ok=True)]


def test_a_layer_with_fewer_experts_than_another_has_a_shorter_list_and_its_own_figures() -> None:
    first = ((stats([3, 1], 1, 2.0), stats([1, 1, 1, 1], 0, 4.0)),)
    window = LoadWindow([2, 4], CPU)
    window.add(first, step=1)
    resumed = LoadWindow([2, 4], CPU)
    resumed.load_state(json.loads(json.dumps(window.state(ALONE))), ALONE)
    resumed.add(((stats([1, 3], 2, 2.0), stats([0, 0, 0, 4], 0, 4.0)),), step=2)
    row = resumed.reduce(ALONE, {"loss": torch.tensor(2.0)}).as_row()
    assert row["load"] == [[4, 4], [1, 1, 1, 5]]
    assert row["dropped"] == [3, 0]
    assert row["cv"] == [0.0, pytest.approx(math.sqrt(3) / 2)]
    assert row["entropy"][0] == pytest.approx(1.0)
    assert row["dead_fraction"] == [0.0, 0.0]
    assert row["router_entropy"] == [0.5, 1.0]


def test_reducing_begins_a_new_window() -> None:
    window = LoadWindow([2], CPU)
    window.add(((stats([3, 1], 1, 1.0),),), step=1)
    window.reduce(ALONE, {})
    row = window.reduce(ALONE, {}).as_row()
    assert row["load"] == [[0, 0]]
    assert row["cv"] == [0.5]  # of the last steps, whenever the last row was written
    assert math.isnan(row["drop_rate"][0])
    assert math.isnan(row["router_entropy"][0])
    assert math.isnan(row["router_top_probability"][0])
    assert math.isnan(row["experts_per_token"][0])


def test_a_dense_model_has_empty_lists_and_still_its_losses() -> None:
    window = LoadWindow([], CPU)
    window.add(((), ()), step=1)
    summary = window.reduce(ALONE, {"loss": torch.tensor(1.0), "other": torch.tensor(3.0)})
    assert summary.scalars == {"loss": 1.0, "other": 3.0}
    assert all(figures == [] for figures in summary.as_row().values())


def test_counts_beyond_float32_stay_exact() -> None:
    window = LoadWindow([2], CPU)
    window.add(((stats([2**40 + 1, 2**24 + 1]),),), step=1)
    window.add(((stats([2**40 + 1, 0]),),), step=2)
    assert window.reduce(ALONE, {}).as_row()["load"] == [[2**41 + 2, 2**24 + 1]]


def test_a_router_that_is_not_finite_leaves_the_counts_whole() -> None:
    window = LoadWindow([2], CPU)
    window.add(((stats([1, 3], 0, math.nan),),), step=1)
    assert window.reduce(ALONE, {}).as_row()["load"] == [[1, 3]]


def test_an_open_window_goes_on_after_a_resume() -> None:
    first, second = ((stats([3, 1], 1, 0.3),),), ((stats([0, 4], 2, 0.7),),)
    uninterrupted = LoadWindow([2], CPU)
    uninterrupted.add(first, step=1)
    state = json.loads(json.dumps(uninterrupted.state(ALONE)))
    uninterrupted.add(second, step=2)

    resumed = LoadWindow([2], CPU)
    resumed.load_state(state, ALONE)
    resumed.add(second, step=2)
    assert resumed.reduce(ALONE, {}) == uninterrupted.reduce(ALONE, {})


POSITIONAL = {"counts": [[3, 1, 0, 0, 1, 600, 500, 4], [1, 1, 1, 1, 0, 700, 0, 4]]}
"""The open window of a checkpoint without names: of layers of two and of four experts, then four figures."""


def test_a_window_without_names_goes_on_as_if_it_had_them() -> None:
    named = {
        "load": [[3, 1, 0, 0], [1, 1, 1, 1]],
        "dropped": [1, 0],
        "router_entropy": [600, 700],
        "router_top_probability": [500, 0],
        "tokens": [4, 4],
    }
    parts = [[[3, 1, 0, 0], [1, 1, 1, 1]], *[[[0] * 4] * 2] * 9]
    old, new = LoadWindow([2, 4], CPU), LoadWindow([2, 4], CPU)
    old.load_state({**POSITIONAL, "recent": parts}, ALONE)
    new.load_state({"counts": named, "recent": {"load": parts}}, ALONE)
    assert old.state(ALONE) == new.state(ALONE) == {"counts": named, "recent": {"load": parts}}
    for window in (old, new):
        window.add(((stats([1, 1], 1, 1.0, top=1.0), stats([0, 0, 0, 4], 0, 1.0, top=2.0)),), step=2)
    row = old.reduce(ALONE, {}).as_row()
    assert encode_row(row) == encode_row(new.reduce(ALONE, {}).as_row())
    assert row["load"] == [[4, 2], [1, 1, 1, 5]]
    assert row["router_entropy"] == [(600 / 2**20 + 1) / 6, (700 / 2**20 + 1) / 8]
    assert row["cv"][1] == pytest.approx(math.sqrt(3) / 2)


def test_of_an_older_window_with_fewer_figures_the_loads_alone_are_known() -> None:
    window = LoadWindow([2], CPU)
    window.load_state({"counts": [[1, 2, 3, 4, 5]]}, ALONE)
    row = window.reduce(ALONE, {}).as_row()
    assert row["load"] == [[1, 2]]
    assert math.isnan(row["dropped"][0])


FIGURES_OF = {
    "load": {"load", "drop_rate", "experts_per_token", "capacity_use"},
    "dropped": {"dropped", "drop_rate", "experts_per_token", "capacity_use"},
    "router_entropy": {"router_entropy"},
    "router_top_probability": {"router_top_probability"},
    "router_z": {"router_z"},
    "router_logit_rms": {"router_logit_rms"},
    "router_not_finite": {"router_not_finite"},
    "slots": {"capacity_use"},
    "tokens": {
        "router_entropy",
        "router_top_probability",
        "router_z",
        "router_logit_rms",
        "experts_per_token",
    },
}
"""Count -> what a row shows of it."""


@pytest.mark.parametrize(("name", "figures"), FIGURES_OF.items())
def test_what_a_checkpoint_did_not_count_is_null_in_the_row_of_its_window_alone(name, figures, caplog):
    step = ((stats([3, 1], 1, 2.0, top=2.0, slots=4, router_z=8.0, router_logit_rms=4.0),),)
    whole, resumed = LoadWindow([2], CPU), LoadWindow([2], CPU)
    whole.add(step, step=1)
    state = whole.state(ALONE)
    del state["counts"][name]
    resumed.load_state(state, ALONE)
    assert f"has no count of {name}" in caplog.text
    for window in (whole, resumed):
        window.add(step, step=2)
    assert name not in resumed.state(ALONE)["counts"]  # a second checkpoint of this window lacks it, too
    expected, row = (json.loads(encode_row(each.reduce(ALONE, {}).as_row())) for each in (whole, resumed))
    nothing = {"load": [[None, None]]}
    assert row == {
        key: nothing.get(key, [None]) if key in figures else value for key, value in expected.items()
    }
    for window in (whole, resumed):
        window.add(step, step=3)
    assert resumed.reduce(ALONE, {}) == whole.reduce(ALONE, {})


def test_a_window_that_begins_after_a_resume_is_whole() -> None:
    window = LoadWindow([2], CPU)
    window.load_state({"counts": {"load": [[0, 0]], "tokens": [0]}}, ALONE)
    window.add(((stats([3, 1], 1, 2.0, top=2.0),),), step=1)
    row = window.reduce(ALONE, {}).as_row()
    assert (row["dropped"], row["router_entropy"]) == ([1], [0.5])


def test_a_count_that_this_version_does_not_know_is_reported_and_passed_over(caplog) -> None:
    whole, resumed = LoadWindow([2], CPU), LoadWindow([2], CPU)
    whole.add(((stats([3, 1], 1, 2.0, top=2.0),),), step=1)
    state = whole.state(ALONE)
    state["counts"]["logit_norm"] = [7]
    resumed.load_state(state, ALONE)
    assert "counts logit_norm, which this version does not" in caplog.text
    assert resumed.reduce(ALONE, {}) == whole.reduce(ALONE, {})


def _rank(rank: int, store: str, state: dict[str, Any], out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    data = Axis.along(init_device_mesh("cpu", (2,)))
    window = LoadWindow([2], CPU)
    window.load_state(state, data)
    window.add(((stats([1 + rank, 10 * rank], rank, 1.5, tokens=6, top=3.0 + rank),),), step=6)
    before = window.state(data)
    summary = window.reduce(data, {"loss": torch.tensor(1.0 + rank), "balance": torch.tensor(4.0)})
    Path(out, str(rank)).write_text(json.dumps([before, summary.as_row(), summary.scalars]))
    dist.destroy_process_group()


def test_two_ranks_agree_on_the_sum_of_what_both_saw_and_what_was_saved(tmp_path: Path) -> None:
    saved = LoadWindow([2], CPU)
    saved.add(((stats([100, 200], 5, 21.0, tokens=12, top=5.0),),), step=5)
    mp.spawn(_rank, (str(tmp_path / "store"), saved.state(ALONE), str(tmp_path)), nprocs=2)
    seen = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert seen[0] == seen[1]
    state, row, scalars = seen[0]
    assert {name: count for name, count in state["counts"].items() if any(count)} == {
        "load": [[103, 210]],
        "dropped": [6],
        "tokens": [24],
        "router_entropy": [24 * 2**20],
        "router_top_probability": [12 * 2**20],
    }
    assert state["recent"]["load"][4:6] == [[[100, 200]], [[3, 10]]]
    assert row["load"] == [[103, 210]]
    assert row["dropped"] == [6]
    assert row["router_entropy"] == [1.0]
    assert row["router_top_probability"] == [0.5]
    assert row["experts_per_token"] == [307 / 24]
    assert scalars == {"loss": 1.5, "balance": 4.0}
