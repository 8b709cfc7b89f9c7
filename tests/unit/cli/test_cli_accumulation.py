"""A run whose batches come in pieces, and whose balance loss is of the whole batch, through the command line."""

import json
from pathlib import Path

import pytest
from small_run import Command

ACCUMULATED = ("data.micro_batch=2", "moe.router.balance_coefficient=1")


def rows(run_dir: Path) -> list[dict]:
    """Training rows without what depends on time and on how often the run was started."""
    written = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("attempt", "tokens_per_second")}
        for row in written
        if "loss" in row
    ]


@pytest.mark.parametrize("kind", ["switch", "noisy_top_k"])
def test_a_resume_goes_on_with_the_same_bits(moe_train: Command, tmp_path: Path, kind: str) -> None:
    words = (*ACCUMULATED, f"moe.router.kind={kind}", "moe.capacity_factor=null")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert moe_train("run", "small.yaml", "--run-dir", str(whole), *words).code == 0
    assert moe_train("run", "small.yaml", "--run-dir", str(parts), *words, "steps=4", "log_every=3").code == 0
    assert moe_train("run", "small.yaml", "--run-dir", str(parts), *words).code == 0
    assert rows(parts)[-1]["moe"]["cv"] == rows(whole)[-1]["moe"]["cv"]
    for name in ("loss", "losses", "grad_norm"):
        assert rows(parts)[-1][name] == rows(whole)[-1][name], name


def test_the_losses_are_those_of_a_batch_in_one_piece(moe_train: Command, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert moe_train("run", "small.yaml", "--run-dir", str(whole), ACCUMULATED[1]).code == 0
    assert moe_train("run", "small.yaml", "--run-dir", str(pieces), *ACCUMULATED).code == 0
    for one, other in zip(rows(whole), rows(pieces), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["losses"]["balance"] == pytest.approx(one["losses"]["balance"], rel=1e-5)


def test_show_says_what_the_pieces_cost(moe_train: Command) -> None:
    ended = moe_train("show", "small.yaml", *ACCUMULATED)
    assert ended.code == 0
    assert "data.micro_batch=2 with moe.router.balance_over=batch" in ended.output
    assert "about a third more time" in ended.output
