"""What a recipe may say about `engine`: one dataclass a kind; see kind.py."""

from dataclasses import dataclass

from moe_train.config.kinds.kind import KindConfig


@dataclass
class EngineConfig(KindConfig):
    """Base of all engines."""


@dataclass
class NativeEngineConfig(EngineConfig):
    """torch FSDP2 for what is shared, expert parallelism for the experts."""

    kind: str = "native"
    reshard_after_forward: bool = (
        False  # true: gather weights again for the backward pass, for less memory (ZeRO-3)
    )
