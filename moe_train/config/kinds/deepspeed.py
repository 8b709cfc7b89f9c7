"""Defines `engine.kind=deepspeed`: its options, its rules, and DeepSpeed's own configuration, made from the recipe.

Nothing here imports DeepSpeed, which takes seconds.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from moe_train.config.kinds.deepspeed_keys import key_problems, read
from moe_train.config.kinds.engine import COMPILED_PARTS, OwnEngineConfig
from moe_train.config.kinds.facts import Facts
from moe_train.config.problem import Problem

FILE_NAME = "deepspeed.json"
VERSIONS = {"deepspeed": "0.19.", "megatron-core": "0.16."}
"""The engine reads gradients where this DeepSpeed keeps them, and overrides methods of this Megatron's layers."""
INSTALL = {
    "deepspeed": "pip install 'deepspeed>=0.19.8,<0.20'",
    "megatron-core": "pip install 'megatron-core>=0.16.1,<0.17'",
}


@dataclass
class DeepSpeedEngineConfig(OwnEngineConfig):
    """Uses DeepSpeed's ZeRO under the same model, experts and dispatchers as the native engine."""

    packages: ClassVar[tuple[str, ...]] = ("deepspeed", "megatron-core")

    kind: str = "deepspeed"
    stage: int = 1  # 0: every worker has all; 1: optimizer state is cut over the workers; 2: and gradients
    config: dict[str, Any] = field(default_factory=dict)  # more keys of DeepSpeed's own configuration

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        yield from _installed("deepspeed", "engine.kind", self.kind, "engine.kind=native")
        if recipe.parallel.tensor > 1:
            yield from _installed(
                "megatron-core",
                "parallel.tensor",
                recipe.parallel.tensor,
                "parallel.tensor=1, or engine.kind=native",
            )
        if recipe.parallel.shard is not None:
            yield Problem(
                "parallel.shard",
                recipe.parallel.shard,
                "shards in groups, but ZeRO cuts over all workers that hold the same parameters",
                "set parallel.shard=null, or engine.kind=native",
            )
        yield from self._stage(recipe)
        yield from key_problems(self.config)

    def not_compiled(self, tensor: int) -> Mapping[str, str]:
        inside = "megatron-core's layers sum over workers inside"
        cut = dict.fromkeys(("attention", "feed-forward blocks"), inside) if tensor > 1 else {}
        names = COMPILED_PARTS[self.compile]
        return {**{name: cut[name] for name in names if name in cut}, **super().not_compiled(tensor)}

    def _stage(self, recipe: Facts) -> Iterator[Problem]:
        if self.stage == 3:
            yield Problem(
                "engine.stage",
                3,
                "cuts weights too, which DeepSpeed does not do with experts",
                "use engine.stage=2, or engine.kind=native with engine.reshard_after_forward=true, which cuts them",
            )
        elif self.stage not in (0, 1, 2):
            yield Problem("engine.stage", self.stage, "is not a stage of ZeRO", "use 0, 1 or 2")
        elif self.stage and not recipe.optim.is_elementwise:
            yield Problem(
                "engine.stage",
                self.stage,
                f"hands the optimizer ranges of flattened weights, but optim.kind={recipe.optim.kind} needs their "
                "rows and columns",
                "use engine.stage=0, engine.kind=native, or optim.kind=adamw",
            )

    def settings(self, recipe: Facts, data: int) -> dict[str, Any]:
        """Returns DeepSpeed's configuration for `data` workers that share a batch.

        The norm, clipping, the precision and accumulation are those of the recipe, so DeepSpeed's are off: its batch is
        one microbatch of every worker.
        """
        micro_batch = recipe.data.micro_batch or recipe.data.global_batch // data
        extra = read(self.config)
        zero: dict[str, Any] = {"stage": self.stage}
        if self.stage:
            zero |= {"contiguous_gradients": True, "reduce_scatter": True, "compute_grad_norm": False}
        zero |= extra.pop("zero_optimization", {})
        return {
            "train_batch_size": micro_batch * data,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "log_level": "error",
            **extra,
        }

    def files(self, recipe: Facts, data: int) -> Mapping[str, str]:
        return {FILE_NAME: json.dumps(self.settings(recipe, data), indent=1) + "\n"}


def _installed(package: str, key: str, value: object, instead: str) -> Iterator[Problem]:
    """Yields a problem unless a package of the right version can be imported; it is not imported."""
    from importlib.metadata import PackageNotFoundError, version  # takes as long as all of `show` without it

    try:
        found = version(package) if importlib.util.find_spec(package.partition("-")[0]) else None
    except PackageNotFoundError:
        found = None
    way_out = f"install it with {INSTALL[package]}, or use {instead}"
    if found is None:
        yield Problem(key, value, f"needs the package {package}, which is not installed", way_out)
    elif not found.startswith(VERSIONS[package]):
        rule = f"needs version {VERSIONS[package]}x of the package {package}, but {found} is installed"
        yield Problem(key, value, rule, way_out)
