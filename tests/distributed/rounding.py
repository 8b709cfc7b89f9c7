"""Compares bf16 on a layout with bf16 on one process: it may be no further from fp32.

Layouts round sums in other places, and then a token whose best experts are all but even goes to another one: two of
128 tokens that do so move the gradient of an expert by a third. So no fixed bound tells rounding from an error; what
rounding does on one process does. What is wrong by a factor shows in the length along the gradient of fp32 as well.
"""

from collections.abc import Callable

import pytest
import torch
from layout_run import LayoutRun, gathered
from torch import Tensor

TIMES = 3.0
"""As far from fp32 as one process with bf16, this many times."""
LEAST = {True: 0.1, False: 0.5}
"""A relative difference of gradients that is always rounding, where all tokens go to their experts and where not."""
LEAST_OF_LOSS = {True: 5e-4, False: 2e-3}
"""The same of the loss: 30 edges elsewhere have moved it by 1.5e-3, where 20 on one process moved it by 4e-4."""
LENGTH = 0.3
"""Of a gradient along that of fp32, 1 being right: a difference from 1 that is always rounding."""
LEAST_OF_NORM = 2e-2
LOSSES: dict[str, Callable[[LayoutRun], float]] = {
    "loss": lambda run: run.losses[0],
    "reported loss": lambda run: run.reported[0],
}
"""Of the first step."""


def assert_rounded_alike(expected: LayoutRun, runs: list[LayoutRun]) -> None:
    """Compares the first step alone, since later ones go by rounded updates."""
    exact, run = expected.unrounded, runs[0]
    assert exact is not None
    is_same = torch.equal(run.loads[0], exact.loads[0])
    figures = {what: (loss, LEAST_OF_LOSS[is_same]) for what, loss in LOSSES.items()}
    figures["norm"] = (lambda of: of.norms[0], LEAST_OF_NORM)
    for name in exact.auxiliary[0]:
        figures[name] = (lambda of, name=name: of.auxiliary[0][name], LEAST_OF_NORM)
    for what, (figure, least) in figures.items():
        rounding = abs(figure(expected) - figure(exact))
        assert figure(run) == pytest.approx(figure(exact), rel=least, abs=TIMES * rounding), what
    whole, alone = gathered([exact.gradients]), gathered([expected.gradients])
    rounding = max(distance(alone[name], whole[name]) for name in whole)
    most = max(LEAST[is_same], TIMES * rounding)
    for name, gradient in gathered([each.gradients for each in runs]).items():
        far, size = distance(gradient, whole[name]), float(whole[name].square().sum())
        assert far <= most, f"{name}: differs by {far:.2f} of its norm, and rounding makes {rounding:.2f}"
        length = float((gradient * whole[name]).sum()) / size
        assert abs(length - 1) <= max(LENGTH, rounding), f"{name}: has {length:.2f} of its length"


def distance(gradient: Tensor, exact: Tensor) -> float:
    """The norm of the difference, relative to that of the exact gradient."""
    return float((gradient - exact).norm() / exact.norm())
