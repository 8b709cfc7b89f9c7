"""Counts the FLOPs of matrix products and of attention, by the formulas of torch's counter."""

from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import flop_registry


class Flops:
    """Is a counter for `Watch`."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Adds the operation's FLOPs, if it has any."""
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
