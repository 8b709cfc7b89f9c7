"""What a recipe may say about `moe.dispatch`: one dataclass a kind; see kind.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class DispatchConfig(KindConfig):
    """Base of all dispatchers."""


@dataclass
class AutoDispatchConfig(DispatchConfig):
    """`local` where a worker holds all experts, else `all_to_all`."""

    kind: str = "auto"


@dataclass
class LocalDispatchConfig(DispatchConfig):
    """Experts and tokens on the same worker."""

    kind: str = "local"

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if recipe.parallel.expert > 1:
            yield Problem(
                "moe.dispatch.kind",
                "local",
                f"reaches only this worker's experts, but parallel.expert={recipe.parallel.expert} shares them out",
                "use moe.dispatch.kind=all_to_all (or auto), or parallel.expert=1",
            )


@dataclass
class AllToAllDispatchConfig(DispatchConfig):
    """Rows exchanged by one all-to-all each way (gloo or NCCL)."""

    kind: str = "all_to_all"
