"""What a recipe may say about `model.depth`: one dataclass a kind; see kind.py."""

from dataclasses import dataclass

from moe_train.config.kinds.kind import KindConfig


@dataclass
class DepthConfig(KindConfig):
    """Base of all kinds of depth: which rows go through which blocks."""


@dataclass
class FullDepthConfig(DepthConfig):
    """Every row goes through every block."""

    kind: str = "full"
