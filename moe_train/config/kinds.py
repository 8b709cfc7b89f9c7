"""The dataclass of every `kind`, without torch; `registry.py` says which code each one builds.

To add a kind: a dataclass here (with `check`, if it has rules of its own), a line in `registry.py`, one file with
the implementation, one recipe.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe


@dataclass
class KindConfig:
    """What all kinds share: a name, and rules that need the whole recipe to be judged."""

    kind: str = ""

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        """Yield what makes this choice unusable in `recipe`."""
        return iter(())


# --- moe.router -------------------------------------------------------------------------------------------------


@dataclass
class RouterConfig(KindConfig):
    """Base of all routers."""

    @property
    def num_choices(self) -> int:
        """Experts a token is sent to at most."""
        return 1


@dataclass
class SwitchRouterConfig(RouterConfig):
    """Switch (2101.03961): one expert per token, weight = its probability."""

    kind: str = "switch"
    jitter: float = 0.01  # router input times U(1 - jitter, 1 + jitter), training only
    balance_coefficient: float = 0.01  # alpha of eq. 4
    z_coefficient: float = 0.0  # ST-MoE's router z-loss

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if not 0 <= self.jitter < 1:
            yield Problem("moe.router.jitter", self.jitter, "must be in [0, 1)", "use 0.01, or 0 for none")


@dataclass
class TopKRouterConfig(RouterConfig):
    """Softmax over all experts, the k largest chosen."""

    kind: str = "top_k"
    k: int = 2  # experts per token
    normalize: bool = True  # the k weights of a token sum to 1
    jitter: float = 0.0
    balance_coefficient: float = 0.01
    z_coefficient: float = 0.0

    @property
    def num_choices(self) -> int:
        return self.k

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if not 1 <= self.k <= recipe.moe.num_experts:
            yield Problem(
                "moe.router.k",
                self.k,
                f"must be between 1 and moe.num_experts={recipe.moe.num_experts}",
                f"set moe.router.k to at most {recipe.moe.num_experts} or raise moe.num_experts",
            )
        if self.k == 1 and self.normalize:
            yield Problem(
                "moe.router.normalize",
                "true",
                "with moe.router.k=1 makes every weight 1, so the router learns nothing from the task",
                "set moe.router.normalize=false, or use moe.router.kind=switch",
            )
        if not 0 <= self.jitter < 1:
            yield Problem("moe.router.jitter", self.jitter, "must be in [0, 1)", "use 0.01, or 0 for none")


# --- moe.dispatch -----------------------------------------------------------------------------------------------


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


# --- objective --------------------------------------------------------------------------------------------------


@dataclass
class ObjectiveConfig(KindConfig):
    """Base of all objectives."""


@dataclass
class LanguageConfig(ObjectiveConfig):
    """Next-token cross-entropy, mean over tokens, in nats."""

    kind: str = "language"


# --- data -------------------------------------------------------------------------------------------------------


@dataclass
class CorpusConfig(KindConfig):
    """Base of all corpora."""


@dataclass
class FilesCorpusConfig(CorpusConfig):
    """Text files below a folder, or matching a glob; null: the running Python's own standard library."""

    kind: str = "files"
    path: str | None = None  # a folder, a file, or a glob such as docs/**/*.md
    suffixes: list[str] = field(default_factory=lambda: [".txt", ".md", ".rst", ".py"])  # for folders


@dataclass
class DebianCorpusConfig(CorpusConfig):
    """Prose from Debian's documentation packages, fetched with apt-get (about 65 MB of text)."""

    kind: str = "debian"
    packages: list[str] = field(default_factory=list)  # empty: all that the corpus knows


@dataclass
class HuggingFaceCorpusConfig(CorpusConfig):
    """A data set of the Hugging Face hub, or a local folder of one, streamed."""

    kind: str = "huggingface"
    path: str = ""  # e.g. allenai/c4, or a folder
    name: str | None = None  # configuration of the data set
    split: str = "train"
    text_field: str = "text"
    max_documents: int | None = None  # null: all

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if not self.path:
            yield Problem(
                "data.corpus.path", "''", "a data set needs a name or a folder", "set data.corpus.path"
            )


@dataclass
class TokenizerConfig(KindConfig):
    """Base of all tokenizers."""

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        raise AssertionError("every tokenizer kind says its size")


@dataclass
class BPEConfig(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the training files."""

    kind: str = "bpe"
    vocab_size: int = 4096

    @property
    def size(self) -> int:
        return self.vocab_size

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if self.vocab_size < 258:
            yield Problem(
                "data.tokenizer.vocab_size",
                self.vocab_size,
                "must hold the 256 bytes and 2 special tokens",
                "use at least 258; 4096 suits small corpora",
            )


# --- optim ------------------------------------------------------------------------------------------------------


@dataclass
class ScheduleConfig(KindConfig):
    """Base of all learning-rate schedules: linear warm-up from 0, then the kind's own curve."""

    warmup_steps: int = 0


@dataclass
class ConstantScheduleConfig(ScheduleConfig):
    """The peak rate after warm-up."""

    kind: str = "constant"


@dataclass
class CosineScheduleConfig(ScheduleConfig):
    """Half a cosine from the peak to `final_fraction` of it at the last step."""

    kind: str = "cosine"
    final_fraction: float = 0.1


@dataclass
class LinearScheduleConfig(ScheduleConfig):
    """A straight line from the peak to `final_fraction` of it at the last step."""

    kind: str = "linear"
    final_fraction: float = 0.0


@dataclass
class InverseSqrtScheduleConfig(ScheduleConfig):
    """peak * sqrt(max(warmup, 1) / max(step, warmup, 1)) (T5, Switch)."""

    kind: str = "inverse_sqrt"


@dataclass
class OptimConfig(KindConfig):
    """What all optimizers share."""

    lr: float = 1e-3  # peak
    weight_decay: float = 0.0  # decoupled in adamw, L2 in sgd; not on norms
    clip: float | None = 1.0  # largest global gradient norm; null: no clipping
    schedule: ScheduleConfig = field(default_factory=CosineScheduleConfig)

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if self.lr <= 0:
            yield Problem("optim.lr", self.lr, "must be above 0", "set optim.lr, for example 1e-3")
        if self.weight_decay < 0:
            yield Problem(
                "optim.weight_decay", self.weight_decay, "must be at least 0", "use 0.1, or 0 for none"
            )
        if self.clip is not None and self.clip <= 0:
            yield Problem(
                "optim.clip", self.clip, "must be above 0", "set optim.clip=1.0, or null for no clipping"
            )
        if not self.schedule.warmup_steps >= 0:
            yield Problem(
                "optim.schedule.warmup_steps", self.schedule.warmup_steps, "must be at least 0", "use 0"
            )


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW (1711.05101)."""

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        for key, value in (("optim.beta1", self.beta1), ("optim.beta2", self.beta2)):
            if not 0 <= value < 1:
                yield Problem(key, value, "must be in [0, 1)", "use 0.9 for beta1 and 0.95 for beta2")
        if self.epsilon <= 0:
            yield Problem("optim.epsilon", self.epsilon, "must be above 0", "use 1e-8")


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent, with momentum if asked."""

    kind: str = "sgd"
    momentum: float = 0.0

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        yield from super().check(recipe)
        if not 0 <= self.momentum < 1:
            yield Problem("optim.momentum", self.momentum, "must be in [0, 1)", "use 0.9, or 0 for none")


# --- engine -----------------------------------------------------------------------------------------------------


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
