"""docs/metrics.md has every key of the `moe` part of a training row, and no other."""

import re
from pathlib import Path

from moe_train.moe.figures import MEANS, TOTALS
from moe_train.monitor import balance

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
KEY = re.compile(r"^\| `(\w+)` \| `\[L\]", re.MULTILINE)

OTHERS = (
    "device_load",
    "router_gradient_norm",
    "expert_gradient_norm",
    "expert_similarity",
    "similar_experts",
)
"""Keys that are no counts of a layer."""


def test_the_page_of_metrics_has_every_figure_of_the_layers_once():
    shown = [figure.name for figure in (*TOTALS, *MEANS) if figure.show is not None]
    assert sorted(KEY.findall(PAGE.read_text())) == sorted([*shown, *balance.FIGURES, *OTHERS])
