"""Maps every `kind` to its dataclass and its code. A new kind needs one line here, and nowhere else.

Kinds of installed packages need no line: see plug_ins.py.

The code is named as text and imported when it is built, so that reading, checking and showing a recipe never imports
torch. An implementation is called as `Implementation(config, **context)`; the context depends on the place in the
recipe (routers get the model's width, corpora nothing).
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from moe_train.config.kinds import data, deepspeed, depth, dispatch, engine, objective, optim, parallel_corpus
from moe_train.config.kinds.guard.guard import GuardConfig
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.kinds.router.router import RouterConfig
from moe_train.config.plug_ins import Kind, Kinds, OnDemand
from moe_train.errors import RecipeError


def _router(name: str, code: str | None = None, layer: str | None = None) -> Callable[[], Kind]:
    """Makes the kind of a router by "file:Class": its options are the dataclass ClassConfig in
    config/kinds/router/FILE.py, its code the class in moe/routers/FILE.py unless `code` names another."""
    return partial(_named, "kinds.router", name, f"moe_train.moe.routers.{code or name}", layer)


def _guard(name: str) -> Callable[[], Kind]:
    """Makes the kind of a guard by "file:Class": its options are the dataclass ClassConfig in
    config/kinds/guard/FILE.py, its code the class in guards/FILE.py."""
    return partial(_named, "kinds.guard", name, f"moe_train.guards.{name}")


def _named(folder: str, name: str, code: str, layer: str | None = None) -> Kind:
    module, _, kind = name.partition(":")
    options = importlib.import_module(f"moe_train.config.{folder}.{module}")
    return Kind(getattr(options, f"{kind}Config"), code, layer)


ROUTED_LAYER = "moe_train.moe.layers.routed:RoutedLayer"
"""The layer of routers whose kind names none."""

OWN_KINDS: Mapping[str, Mapping[str, Kind]] = {
    "moe.router": OnDemand(
        {
            "switch": _router("switch:SwitchRouter", code="top_k:TopKRouter"),
            "top_k": _router("top_k:TopKRouter"),
            "gshard": _router("gshard:GShardRouter"),
            "noisy_top_k": _router("noisy_top_k:NoisyTopKRouter"),
            "hierarchical_top_k": _router("hierarchical_top_k:HierarchicalTopKRouter"),
            "prototypes": _router("prototypes:PrototypesRouter"),
            "deepseek": _router("deepseek:DeepSeekRouter"),
            "hash": _router("hash:HashRouter"),
            "random": _router("random:RandomRouter"),
            "thor": _router("thor:ThorRouter"),
            "dense_to_sparse": _router("dense_to_sparse:DenseToSparseRouter"),
            "base": _router("base:BaseRouter"),
            "sinkhorn": _router("sinkhorn:SinkhornRouter"),
            "expert_choice": _router("expert_choice:ExpertChoiceRouter"),
            "batch_priority": _router("batch_priority:BatchPriorityRouter"),
            "dselect_k": _router("dselect_k:DSelectKRouter"),
            "reinforce": _router("reinforce:ReinforceRouter"),
            "soft": _router("soft:SoftRouter", layer="moe_train.moe.layers.soft:SoftLayer"),
            "smear": _router("smear:SmearRouter", layer="moe_train.moe.layers.smear:SmearLayer"),
        }
    ),
    "model.depth": {
        "full": Kind(depth.FullDepthConfig, "moe_train.model.depth:FullDepth"),
    },
    "moe.dispatch": {
        "auto": Kind(dispatch.AutoDispatchConfig, "moe_train.moe.dispatch.auto:choose"),
        "local": Kind(dispatch.LocalDispatchConfig, "moe_train.moe.dispatch.local:LocalDispatcher"),
        "all_to_all": Kind(
            dispatch.AllToAllDispatchConfig, "moe_train.moe.dispatch.all_to_all:AllToAllDispatcher"
        ),
        "one_sided": Kind(dispatch.OneSidedDispatchConfig, "moe_train.moe.dispatch.one_sided:join"),
        "hierarchical": Kind(dispatch.HierarchicalDispatchConfig, "moe_train.moe.dispatch.hierarchical:join"),
    },
    "objective": {
        "language": Kind(objective.LanguageConfig, "moe_train.objectives.language:LanguageObjective"),
        "consistency": Kind(
            objective.ConsistencyConfig, "moe_train.objectives.consistency:ConsistencyObjective"
        ),
        "translation": Kind(
            objective.TranslationConfig, "moe_train.objectives.translation:TranslationObjective"
        ),
        "masked": Kind(objective.MaskedConfig, "moe_train.objectives.masked:MaskedObjective"),
        "span_corruption": Kind(
            objective.SpanCorruptionConfig, "moe_train.objectives.span_corruption:SpanCorruptionObjective"
        ),
    },
    "data.corpus": {
        "files": Kind(data.FilesCorpusConfig, "moe_train.data.corpora.files:FilesCorpus"),
        "debian": Kind(data.DebianCorpusConfig, "moe_train.data.corpora.debian:DebianCorpus"),
        "huggingface": Kind(
            data.HuggingFaceCorpusConfig, "moe_train.data.corpora.huggingface:HuggingFaceCorpus"
        ),
        "parallel_debian": Kind(
            parallel_corpus.ParallelDebianCorpusConfig,
            "moe_train.data.corpora.parallel_debian:ParallelDebianCorpus",
        ),
        "parallel_files": Kind(
            parallel_corpus.ParallelFilesCorpusConfig,
            "moe_train.data.corpora.parallel_files:ParallelFilesCorpus",
        ),
    },
    "data.tokenizer": {
        "bpe": Kind(data.BPEConfig, "moe_train.data.tokenizer:BPETokenizer"),
    },
    "optim": {
        "adamw": Kind(optim.AdamWConfig, "moe_train.optim.optimizer:adamw"),
        "adafactor": Kind(optim.AdafactorConfig, "moe_train.optim.adafactor:Adafactor"),
        "sgd": Kind(optim.SGDConfig, "moe_train.optim.optimizer:sgd"),
    },
    "optim.schedule": {
        "cosine": Kind(optim.CosineScheduleConfig, "moe_train.optim.schedule:cosine"),
        "constant": Kind(optim.ConstantScheduleConfig, "moe_train.optim.schedule:constant"),
        "linear": Kind(optim.LinearScheduleConfig, "moe_train.optim.schedule:linear"),
        "inverse_sqrt": Kind(optim.InverseSqrtScheduleConfig, "moe_train.optim.schedule:inverse_sqrt"),
    },
    "engine": {
        "native": Kind(engine.NativeEngineConfig, "moe_train.engines.native:NativeEngine"),
        "deepspeed": Kind(deepspeed.DeepSpeedEngineConfig, "moe_train.engines.deepspeed:DeepSpeedEngine"),
    },
}


PLUG_INS: Mapping[str, tuple[str, type[KindConfig]]] = {
    "moe.router": ("moe_train.routers", RouterConfig),
    "model.depth": ("moe_train.depths", depth.DepthConfig),
    "moe.dispatch": ("moe_train.dispatchers", dispatch.DispatchConfig),
    "objective": ("moe_train.objectives", objective.ObjectiveConfig),
    "data.corpus": ("moe_train.corpora", data.CorpusConfig),
    "data.tokenizer": ("moe_train.tokenizers", data.TokenizerConfig),
    "optim": ("moe_train.optimizers", optim.OptimConfig),
    "optim.schedule": ("moe_train.schedules", optim.ScheduleConfig),
    "engine": ("moe_train.engines", engine.EngineConfig),
}
"""For each place, the group of entry points by which packages add kinds, and the base of their dataclasses."""

REGISTRY: Mapping[str, Kinds] = {
    place: Kinds(place, *PLUG_INS[place], own) for place, own in OWN_KINDS.items()
}
"""The kinds of every place, including those of installed packages."""

GUARDS = Kinds(
    "guards",
    "moe_train.guards",
    GuardConfig,
    OnDemand(
        {
            "spike": _guard("spike:SpikeGuard"),
        }
    ),
)
"""The kinds of the list `guards`, which holds any number of them where a place of REGISTRY holds one."""


def implementation(place: str, kind: str) -> Any:
    """Returns the class or function that `kind` names at `place` ("moe.router", ...), imported now."""
    entry = (GUARDS if place == GUARDS.place else REGISTRY[place])[kind]
    return _imported(entry.implementation, f"{place}.kind={kind}", entry.package)


def layer_class(kind: str) -> Any:
    """Returns the class of layer that `kind` of router works in, imported now."""
    entry = REGISTRY["moe.router"][kind]
    return _imported(entry.layer or ROUTED_LAYER, f"moe.router.kind={kind}", entry.package)


def build(place: str, config: KindConfig, /, **context: Any) -> Any:
    """Builds the implementation that `config.kind` names at `place`."""
    return implementation(place, config.kind)(config, **context)


def _imported(name: str, key: str, package: str | None) -> Any:
    """Imports and returns the object that "module:name" names."""
    module, _, attribute = name.partition(":")
    if package is None:
        return getattr(importlib.import_module(module), attribute)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # an import runs the package's own code
        raise RecipeError(
            f"{key}: {name} of the package {package} cannot be imported ({type(error).__name__}: {error}); "
            "correct the package, or uninstall it"
        ) from error
