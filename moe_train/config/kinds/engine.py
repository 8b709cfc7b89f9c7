"""Defines the section `engine`: one dataclass per kind; see kind.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem


@dataclass
class EngineConfig(KindConfig):
    """Is the base of all engines."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What it runs beside torch: all workers must have the same versions."""

    def files(self, recipe: Facts, data: int) -> Mapping[str, str]:
        """Returns the text of files that the engine adds to a run folder, by name; `data` workers share a batch."""
        return {}


@dataclass
class OwnEngineConfig(EngineConfig):
    """Is the base of the engines of this package, which run the same model."""

    # what the backward pass runs again, for less memory: what lies between dispatch and combination, attention (of all
    # kinds), or whole blocks; routers are never run again
    recompute: Literal["none", "experts", "attention", "block"] = "none"

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.recompute == "experts" and recipe.moe.every == 0:
            yield Problem(
                "engine.recompute",
                "experts",
                "applies to MoE layers, and the model has none",
                "choose attention or block",
            )


@dataclass
class NativeEngineConfig(OwnEngineConfig):
    """Uses torch FSDP2 for shared parameters and expert parallelism for the experts."""

    kind: str = "native"
    reshard_after_forward: bool = (
        False  # true: gather weights again for the backward pass, for less memory (ZeRO-3)
    )
    # bf16: weights of a block that bf16 products read are gathered in bf16, half the bytes of null, which is fp32;
    # no number changes
    gather_dtype: Literal["bf16"] | None = None
    # bf16: gradients are summed over workers in bf16, half the bytes of null, which is fp32
    reduce_dtype: Literal["bf16"] | None = None
    # gradients are reduced after every microbatch, not once: less memory, more traffic
    reduce_each_microbatch: bool = False
    offload: bool = False  # weights, gradients and optimizer in host memory; a layer's weights visit the GPU

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if self.gather_dtype == "bf16" and recipe.precision != "bf16":
            yield Problem(
                "engine.gather_dtype",
                "bf16",
                f"needs matrix products in bf16, but precision={recipe.precision}",
                "set precision=bf16, or engine.gather_dtype=null",
            )
