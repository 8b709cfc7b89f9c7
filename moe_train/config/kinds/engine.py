"""Defines the section `engine`: one dataclass per kind; see kind.py."""

from dataclasses import dataclass

from moe_train.config.kinds.kind import KindConfig


@dataclass
class EngineConfig(KindConfig):
    """Is the base of all engines."""


@dataclass
class NativeEngineConfig(EngineConfig):
    """Uses torch FSDP2 for shared parameters and expert parallelism for the experts."""

    kind: str = "native"
    reshard_after_forward: bool = (
        False  # true: gather weights again for the backward pass, for less memory (ZeRO-3)
    )
