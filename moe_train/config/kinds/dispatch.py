"""Defines the section `moe.dispatch`: one dataclass per kind; see kind.py."""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem

MOST_RANKS = 64
"""MAX_RANKS of moe_kernels, repeated here so that reading a recipe does not import torch."""


@dataclass
class DispatchConfig(KindConfig):
    """Is the base of all dispatchers."""


@dataclass
class AutoDispatchConfig(DispatchConfig):
    """Picks `local` if a worker holds all experts, `one_sided` or `hierarchical` on the CPU, else `all_to_all`."""

    kind: str = "auto"


@dataclass
class LocalDispatchConfig(DispatchConfig):
    """Keeps experts and tokens on the same worker."""

    kind: str = "local"

    def check(self, recipe: Facts) -> Iterator[Problem]:
        size, degrees = _set_of_experts(recipe)
        if size > 1:
            yield Problem(
                "moe.dispatch.kind",
                "local",
                f"reaches only a worker's own experts, but {degrees} distributes them",
                "use moe.dispatch.kind=all_to_all (or auto), or a degree of 1",
            )


@dataclass
class AllToAllDispatchConfig(DispatchConfig):
    """Exchanges rows by one all-to-all each way (gloo or NCCL)."""

    kind: str = "all_to_all"


@dataclass
class OneSidedDispatchConfig(DispatchConfig):
    """Writes rows straight into memory that the workers of one host share.

    On CUDA that memory is allocated at the start, `slab_mib` times `num_slabs` on each GPU; on the CPU it is allocated
    as needed, and both options are ignored.
    """

    kind: str = "one_sided"
    slab_mib: int = 64  # room for the most rows that a worker may receive in a layer
    # in use at once: two for each layer and microbatch in progress, plus six; if experts run again
    # (engine.recompute=experts, block), eight in all
    num_slabs: int = 64

    def check(self, recipe: Facts) -> Iterator[Problem]:
        size, degrees = _set_of_experts(recipe)
        if size > MOST_RANKS:
            yield Problem(
                "moe.dispatch.kind",
                "one_sided",
                f"shares memory among at most {MOST_RANKS} workers, but {degrees}",
                "use moe.dispatch.kind=all_to_all (or auto), or a smaller parallel.expert",
            )
        for name, value in (("slab_mib", self.slab_mib), ("num_slabs", self.num_slabs)):
            if value < 1:
                yield Problem(f"moe.dispatch.{name}", value, "must be at least 1", "choose a positive number")


@dataclass
class HierarchicalDispatchConfig(DispatchConfig):
    """Sends rows once to each host that needs them, then within it as `one_sided` does (CPU)."""

    kind: str = "hierarchical"
    ranks_per_host: int | None = None  # consecutive workers on one host; null: detected

    def check(self, recipe: Facts) -> Iterator[Problem]:
        size, (workers, degrees) = self.ranks_per_host, _set_of_experts(recipe)
        if size is not None and (size < 1 or workers % size):
            yield Problem(
                "moe.dispatch.ranks_per_host",
                size,
                f"must divide {degrees}",
                "choose one of its divisors, or null to detect the hosts",
            )
        elif size is not None and size > MOST_RANKS:
            yield Problem(
                "moe.dispatch.ranks_per_host",
                size,
                f"must be at most {MOST_RANKS}, the most workers that can share memory",
                "choose a smaller number",
            )


def _set_of_experts(recipe: Facts) -> tuple[int, str]:
    """Returns the number of workers that hold one set of experts, among which rows travel, and what says so."""
    expert, slices = recipe.parallel.expert, recipe.parallel.expert_tensor
    if slices == 1:
        return expert, f"parallel.expert={expert}"
    return expert * slices, f"parallel.expert * parallel.expert_tensor={expert} * {slices}={expert * slices}"
