"""Applies overlap: has the exchange of rows go on while a worker computes.

Before recomputation, which runs all of it again, and FSDP2, which holds the experts during both halves.
"""

from typing import Literal

from moe_train.model.model import Model
from moe_train.moe.layers.layer import moe_layers_of

Overlap = Literal["none", "shared", "halves"]


def apply_overlap(model: Model, overlap: Overlap) -> None:
    """Has shared experts run while rows travel, and with `halves` also one half of the rows while the other does."""
    if overlap == "none":
        return
    from moe_train.moe.dispatch.overlap import Overlapped  # which most runs do without

    for _, layer in moe_layers_of(model):
        layer.through = Overlapped(num_parts=2 if overlap == "halves" else 1)
