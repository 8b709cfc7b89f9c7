"""Defines the section `model.depth`: one dataclass per kind; see kind.py."""

from dataclasses import dataclass

from moe_train.config.kinds.kind import KindConfig


@dataclass
class DepthConfig(KindConfig):
    """Is the base of all kinds of depth, which choose the rows that go through each block."""


@dataclass
class FullDepthConfig(DepthConfig):
    """Sends every row through every block."""

    kind: str = "full"
