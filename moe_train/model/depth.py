"""Decides before each block of a stack which rows go through it.

A stack asks its `Depth` before every block, with the rows that are left. The answer is None, and all of them go
through, or a `Part`: the input and the rows of that block and of those up to `last`, behind which `put_back` makes the
states of all rows out of those of the part. Rows that skip a block are a part with `last` at this block; rows that
leave a stack for good are left out of one with `last` at its top. Inside of a part there can be smaller ones.
Blocks need nothing else: `Rows` say where a row stands, so it keeps its position, its routing group and its draws
(moe/rows.py), and attention hides the rows that are absent.
T rows that are left, N rows of a part, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from moe_train.config.kinds.depth import FullDepthConfig
from moe_train.config.spec import ModelSpec, StackSpec
from moe_train.moe.routing import RouteContext
from moe_train.moe.rows import Rows


@dataclass(frozen=True)
class Part:
    """Holds rows that go through blocks without the others."""

    x: Float[Tensor, "N D"]
    """What the next block gets."""
    rows: Rows
    put_back: Callable[[Float[Tensor, "N D"]], Float[Tensor, "T D"]]
    """Makes the states of all rows, once the part has gone through its last block."""
    last: int
    """Index of the last block that the part goes through."""

    @classmethod
    def of(cls, x: Float[Tensor, "T D"], rows: Rows, kept: Int[Tensor, " N"], last: int) -> "Part":
        """Returns the rows with these ascending indices; the others keep their states."""
        return cls(x[kept], rows.only(kept), lambda states: x.index_copy(0, kept, states), last)


class Depth(Protocol):
    """Chooses the rows of each block; built as `Depth(config, spec=, stack=, site=)` per stack; may be a module."""

    def before(self, layer: int, x: Float[Tensor, "T D"], context: RouteContext) -> Part | None:
        """Returns the part that goes through block `layer`; None: all rows do.

        All ranks must answer in the same way whether there is a part; a part may have no rows on some of them.
        """
        ...


class FullDepth:
    """Sends every row through every block."""

    def __init__(self, config: FullDepthConfig, *, spec: ModelSpec, stack: StackSpec, site: str):
        del config, spec, stack, site  # there is nothing to decide

    def before(self, layer: int, x: Float[Tensor, "T D"], context: RouteContext) -> Part | None:
        """Leaves no row out."""
        return None
