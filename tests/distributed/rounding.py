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
"""A relative difference that is always rounding, where all tokens go to their experts and where some do not."""
LENGTH = 0.3
"""Of a gradient along that of fp32, 1 being right: a difference from 1 that is always rounding."""
FIGURES: dict[str, tuple[Callable[[LayoutRun], float], float]] = {
    "loss": (lambda run: run.losses[0], 5e-4),
    "reported loss": (lambda run: run.reported[0], 5e-4),
    "norm": (lambda run: run.norms[0], 2e-2),
}
"""Of the first step, with the relative difference that is always rounding."""


def assert_rounded_alike(expected: LayoutRun, runs: list[LayoutRun]) -> None:
    """Compares the first step alone, since later ones go by rounded updates."""
    exact, run = expected.unrounded, runs[0]
    assert exact is not None
    for name in exact.auxiliary[0]:
        rounding = abs(expected.auxiliary[0][name] - exact.auxiliary[0][name])
        assert run.auxiliary[0][name] == pytest.approx(
            exact.auxiliary[0][name], rel=2e-2, abs=TIMES * rounding
        ), name
    for what, (figure, least) in FIGURES.items():
        rounding = abs(figure(expected) - figure(exact))
        assert figure(run) == pytest.approx(figure(exact), rel=least, abs=TIMES * rounding), what
    whole, alone = gathered([exact.gradients]), gathered([expected.gradients])
    rounding = max(distance(alone[name], whole[name]) for name in whole)
    most = max(LEAST[torch.equal(run.loads[0], exact.loads[0])], TIMES * rounding)
    for name, gradient in gathered([each.gradients for each in runs]).items():
        far, size = distance(gradient, whole[name]), float(whole[name].square().sum())
        assert far <= most, f"{name}: differs by {far:.2f} of its norm, and rounding makes {rounding:.2f}"
        length = float((gradient * whole[name]).sum()) / size
        assert abs(length - 1) <= max(LENGTH, rounding), f"{name}: has {length:.2f} of its length"


def distance(gradient: Tensor, exact: Tensor) -> float:
    """The norm of the difference, relative to that of the exact gradient."""
    return float((gradient - exact).norm() / exact.norm())
