"""The matrix of layouts: an axis for every option that may change how a run is carried out, or what it computes.

A new value is one line in AXES. Which values stand together is what config/check.py says.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import yaml
from pairwise import Choice, Covering, covering
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import Recipe

BASE = ("model.num_heads=4", "model.activation=gelu", "moe.activation=gelu", "model.dropout=0.1")
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
TENSOR = ("1", "2", "4")
EXPERT_TENSOR = ("1", "2")
SEQUENCE = ("false", "true")

Overrides = tuple[str, ...]


def router(kind: str, *options: str, limited: bool = False) -> Overrides:
    return (f"moe.router.kind={kind}", *(() if limited else DROPLESS), *options)


LAYOUT: dict[str, dict[str, Overrides]] = {
    "workers": {"4": (), "2": (), "1": (), "8": ()},
    "tensor": {value: (f"parallel.tensor={value}",) for value in TENSOR},
    "sequence": {value: (f"parallel.sequence={value}",) for value in SEQUENCE},
    "expert": {value: (f"parallel.expert={value}",) for value in ("2", "1", "4")},
    "expert_tensor": {value: (f"parallel.expert_tensor={value}",) for value in EXPERT_TENSOR},
    "micro_batch": {value: (f"data.micro_batch={value}",) for value in ("null", "1", "2")},
    "engine": {
        "native": (),
        **{f"stage {stage}": ("engine.kind=deepspeed", f"engine.stage={stage}") for stage in (0, 1, 2)},
    },
    "sharding": {
        "data": (),
        "resharded, each microbatch": (
            "engine.reshard_after_forward=true",
            "engine.reduce_each_microbatch=true",
        ),
        "pairs, offloaded": ("parallel.shard=2", "engine.offload=true"),
        "copies": ("parallel.shard=1",),
        "bf16": ("engine.gather_dtype=bf16", "engine.reduce_dtype=bf16"),
    },
    "recompute": {
        value: (f"engine.recompute={value}",) for value in ("none", "experts", "attention", "block")
    },
    "overlap": {value: (f"engine.overlap={value}",) for value in ("none", "halves", "shared")},
    "dispatch": {
        "auto": (),
        "all_to_all": ("moe.dispatch.kind=all_to_all",),
        "one_sided": ("moe.dispatch.kind=one_sided",),
        "hierarchical": ("moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=2"),
        "local": ("moe.dispatch.kind=local",),
    },
}
MODEL: dict[str, dict[str, Overrides]] = {
    "router": {
        "switch": ("moe.router.z_coefficient=0.001",),
        "top_k": router("top_k", "moe.router.jitter=0.1", "moe.expert_dropout=0.3", limited=True),
        "gshard": router("gshard", "moe.router.second_expert=sampling", limited=True),
        "noisy_top_k": router("noisy_top_k", limited=True),
        "prototypes": router("prototypes"),
        "hierarchical_top_k": router("hierarchical_top_k"),
        "deepseek": router(
            "deepseek",
            "moe.router.num_groups=4",
            "moe.router.top_groups=2",
            "moe.router.balance_coefficient=0.01",
            "moe.router.group_balance_coefficient=0.01",
        ),
        "balance of the batch": router("top_k", "moe.router.balance_over=batch"),
        "hash": router("hash", "moe.router.table=dispersed"),
        "random": router("random"),
        "thor": router("thor"),
        "dense_to_sparse": router(
            "dense_to_sparse",
            "moe.router.decay_steps=3",
            "moe.router.threshold=0.05",
            "moe.router.hard_step=4",
        ),
        "base": router("base"),
        "sinkhorn": router("sinkhorn"),
        "expert_choice": router("expert_choice"),
        "batch_priority": router("batch_priority", limited=True),
        # At a rate of 3, rounding grows tenfold with a step as digits settle, on one process too.
        "dselect_k": router("dselect_k", "moe.router.entropy_coefficient=0.01", "optim.lr=0.3"),
        "reinforce": router("reinforce", "moe.router.policy_coefficient=1"),
        "soft": router("soft", "moe.router.slots_per_expert=2"),
        "smear": router("smear", "moe.router.segment=8"),
    },
    "objective": {
        "language": (),
        "masked": ("model.architecture=encoder", "objective.kind=masked"),
        "spans": (
            "model.architecture=encoder_decoder",
            "objective.kind=span_corruption",
            "objective.sentinels=4",
        ),
        "consistency": ("objective.kind=consistency",),
        "translation": (
            "model.architecture=encoder_decoder",
            "objective.kind=translation",
            "data.corpus.kind=parallel_files",
            "data.corpus.path=pairs",
        ),
    },
    "positions": {
        value: (f"model.positions={value}",) for value in ("rotary", "learned", "relative", "transformer_xl")
    },
    "parts": {
        "tied": (),
        "untied, gated, shared experts": (
            "model.tied_embeddings=false",
            "model.activation=swiglu",
            "moe.shared_experts=1",
        ),
        "odd vocabulary, every second layer": ("data.tokenizer.vocab_size=301", "moe.every=2"),
        "unequal layers": ("moe.num_experts=[4,8]",),
    },
    "optimizer": {
        "sgd": (),
        "adamw": ("optim.kind=adamw", "optim.lr=1e-3", "optim.weight_decay=0.1"),
        "adafactor": ("optim.kind=adafactor", "optim.lr=0.01", "optim.factor_from=8"),
    },
    "precision": {value: (f"precision={value}",) for value in ("fp32", "bf16")},
}
AXES = LAYOUT | MODEL


def overrides_of(choice: Choice, axes: Sequence[str] = tuple(AXES)) -> Overrides:
    """Returns the overrides that make the tiny recipe that of a choice, or of the values on some of its axes."""
    return (*BASE, *(each for axis in axes for each in AXES[axis][choice[axis]]))


def name_of(choice: Choice) -> str:
    """The values that are not plain."""
    plain = {axis: next(iter(values)) for axis, values in AXES.items()}
    return ", ".join(f"{axis}={value}" for axis, value in choice.items() if value != plain[axis]) or "plain"


@cache
def matrix() -> Covering:
    """The combinations that are compared with one process. Takes a minute: over ten thousand recipes are checked."""
    base = tiny_recipe(*BASE)

    def may_stand(choice: Choice) -> bool:
        try:
            recipe = _with(base, overrides_of(choice))
        except TypeError:  # an option of another kind
            return False
        return not problems(recipe, int(choice["workers"]))

    return covering({axis: list(values) for axis, values in AXES.items()}, may_stand)


def _with(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with overrides, without what makes `load_recipe` take fifty milliseconds."""
    for override in overrides:
        path, value = _read(override)
        recipe = _set(recipe, path, value, "")
    return recipe


@cache
def _read(override: str) -> tuple[list[str], Any]:
    key, _, value = override.partition("=")
    return key.split("."), yaml.safe_load(value)


def _set(config: Any, path: list[str], value: Any, place: str) -> Any:
    name, *rest = path
    if name == "kind" and config.kind != value:
        return REGISTRY[place][value].config()
    if not rest:
        known = {field.name: field for field in fields(config)}
        as_float = name in known and known[name].type in (float, "float")
        return replace(config, **{name: float(value) if as_float else value})
    inner = getattr(config, name, None)
    if not is_dataclass(inner):
        raise TypeError(name)
    return replace(config, **{name: _set(inner, rest, value, f"{place}.{name}".lstrip("."))})
