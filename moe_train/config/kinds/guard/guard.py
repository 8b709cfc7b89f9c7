"""What every entry of a recipe's list `guards` is; see kind.py."""

from dataclasses import dataclass

from moe_train.config.kinds.kind import KindConfig


@dataclass
class GuardConfig(KindConfig):
    """Base of all guards. `check` names a field of its own without its place in the list: `window`."""
