"""What a recipe may say about `objective`: one dataclass a kind; see kind.py."""

from dataclasses import dataclass

from moe_train.config.kinds.kind import KindConfig


@dataclass
class ObjectiveConfig(KindConfig):
    """Base of all objectives."""


@dataclass
class LanguageConfig(ObjectiveConfig):
    """Next-token cross-entropy, mean over tokens, in nats."""

    kind: str = "language"
