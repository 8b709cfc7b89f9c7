"""What the rules of a kind may read of the rest of the recipe.

A kind's dataclass is a part of `Recipe`, so these protocols stand in for that class, which has all of this: a kind that
imported it would import itself.
"""

from typing import Any, Protocol


class RouterFacts(Protocol):
    """Of `moe.router`."""

    kind: str

    def draws_in_training(self, num_experts: int) -> bool:
        """Two passes over a batch route it differently."""
        ...


class MoEFacts(Protocol):
    """Of `moe`."""

    every: int | None
    num_experts: Any  # a number while a kind is checked; see with_equal_layers
    expert_dropout: float
    capacity_factor: float | None
    eval_capacity_factor: float | None
    group_sequences: int

    @property
    def router(self) -> RouterFacts: ...


class ModelFacts(Protocol):
    """Of `model`."""

    dropout: float

    @property
    def architecture(self) -> str: ...


class ObjectiveFacts(Protocol):
    """Of `objective`."""

    kind: str

    @property
    def num_extra_tokens(self) -> int: ...


class TokenizerFacts(Protocol):
    """Of `data.tokenizer`."""

    @property
    def size(self) -> int: ...


class DataFacts(Protocol):
    """Of `data`."""

    sequence_length: int

    @property
    def tokenizer(self) -> TokenizerFacts: ...


class ParallelFacts(Protocol):
    """Of `parallel`."""

    expert: int


class Facts(Protocol):
    """Of the recipe."""

    steps: int

    @property
    def model(self) -> ModelFacts: ...
    @property
    def moe(self) -> MoEFacts: ...
    @property
    def objective(self) -> ObjectiveFacts: ...
    @property
    def data(self) -> DataFacts: ...
    @property
    def parallel(self) -> ParallelFacts: ...
