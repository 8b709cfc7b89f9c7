"""Defines the section `engine`: one dataclass per kind; see kind.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem

OFF = "engine.overlap=none"
"""The way out where there is nothing to overlap."""

COMPILED_PARTS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "dense": ("attention", "feed-forward blocks"),
    "all": ("attention", "feed-forward blocks", "norms", "residuals", "losses"),
}
"""Lists what each value of `engine.compile` compiles; distribute/compiled.py says which modules these are."""


@dataclass
class EngineConfig(KindConfig):
    """Is the base of all engines."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Names the packages it runs beside torch: all workers must have the same versions."""

    def files(self, recipe: Facts, data: int) -> Mapping[str, str]:
        """Returns the text of files that the engine adds to a run folder, by name; `data` workers share a batch."""
        return {}


@dataclass
class OwnEngineConfig(EngineConfig):
    """Is the base of the engines of this package, which run the same model."""

    # what the backward pass runs again, for less memory: what lies between dispatch and combination, attention (of all
    # kinds), or whole blocks; routers are never run again
    recompute: Literal["none", "experts", "attention", "block"] = "none"
    # what goes on while rows of experts travel: shared experts, or they and one half of the rows while the other does
    overlap: Literal["none", "shared", "halves"] = "none"
    # what torch.compile makes code for in training: attention and dense feed-forward blocks (shared experts too), or
    # norms, residuals with their dropout and losses as well; never routers and experts
    compile: Literal["none", "dense", "all"] = "none"

    def not_compiled(self, tensor: int) -> Mapping[str, str]:
        """Returns the parts of `engine.compile` that cannot be compiled on tensor groups of this size, with reasons."""
        cut = {"losses": "the logits are cut by vocabulary, and workers sum between the operations"}
        return {name: cut[name] for name in COMPILED_PARTS[self.compile] if name in cut and tensor > 1}

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.overlap != "none":
            yield from self._overlap(recipe)
        if self.recompute == "experts" and recipe.moe.every == 0:
            yield Problem(
                "engine.recompute",
                "experts",
                "applies to MoE layers, and the model has none",
                "choose attention or block",
            )

    def _overlap(self, recipe: Facts) -> Iterator[Problem]:
        """Yields what leaves nothing to overlap."""
        key, moe, dispatch = "engine.overlap", recipe.moe, recipe.moe.dispatch.kind
        if moe.every == 0:
            yield Problem(key, self.overlap, "applies to MoE layers, and the model has none", f"set {OFF}")
        elif not moe.router.sends_rows:
            yield Problem(
                key,
                self.overlap,
                "overlaps the exchange of rows with computing, but the layer of "
                f"moe.router.kind={moe.router.kind} exchanges no rows",
                f"set {OFF}",
            )
        elif recipe.parallel.exchange == 1:
            yield Problem(
                key,
                self.overlap,
                "overlaps the exchange of rows with computing, but with parallel.expert=1 every worker holds all "
                "experts, and no row travels",
                f"use parallel.expert=2 or more, or {OFF}",
            )
        elif dispatch not in ("auto", "all_to_all"):
            yield Problem(
                key,
                self.overlap,
                f"needs an exchange that gloo or NCCL makes in the background, but moe.dispatch.kind={dispatch} makes "
                "its own, for which the worker waits",
                f"use moe.dispatch.kind=all_to_all (or auto), or {OFF}",
            )
        if self.overlap == "shared" and not moe.shared_experts:
            yield Problem(
                key,
                "shared",
                "runs shared experts while rows travel, but moe.shared_experts=0",
                f"use engine.overlap=halves, or {OFF}",
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
