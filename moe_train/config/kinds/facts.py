"""Defines which facts of the rest of the recipe the rules of a kind may read.

A kind's dataclass is a part of `Recipe`, so these protocols stand in for that class, which has all of this: a kind that
imported it would import itself.
"""

from typing import Any, ClassVar, Protocol


class RouterFacts(Protocol):
    """Describes what rules may read of `moe.router`."""

    kind: str
    sends_rows: ClassVar[bool]

    def draws_in_training(self, num_experts: int) -> bool:
        """Returns whether two passes over a batch route it differently."""
        ...


class DispatchFacts(Protocol):
    """Describes what rules may read of `moe.dispatch`."""

    kind: str


class MoEFacts(Protocol):
    """Describes what rules may read of `moe`."""

    every: int | None
    num_experts: Any  # a number while a kind is checked; see with_equal_layers
    expert_dropout: float
    capacity_factor: float | None
    eval_capacity_factor: float | None
    group_sequences: int
    shared_experts: int

    @property
    def dispatch(self) -> DispatchFacts: ...
    @property
    def router(self) -> RouterFacts: ...


class ModelFacts(Protocol):
    """Describes what rules may read of `model`."""

    dropout: float

    @property
    def architecture(self) -> str: ...


class ObjectiveFacts(Protocol):
    """Describes what rules may read of `objective`."""

    kind: str

    @property
    def num_extra_tokens(self) -> int: ...


class TokenizerFacts(Protocol):
    """Describes what rules may read of `data.tokenizer`."""

    @property
    def size(self) -> int: ...


class DataFacts(Protocol):
    """Describes what rules may read of `data`."""

    sequence_length: int
    global_batch: int
    micro_batch: int | None

    @property
    def tokenizer(self) -> TokenizerFacts: ...


class OptimFacts(Protocol):
    """Describes what rules may read of `optim`."""

    kind: str

    @property
    def is_elementwise(self) -> bool: ...


class ParallelFacts(Protocol):
    """Describes what rules may read of `parallel`."""

    tensor: int
    expert: int
    expert_tensor: int
    shard: int | None

    @property
    def exchange(self) -> int: ...


class StabilityFacts(Protocol):
    """Describes what rules may read of `stability`."""

    rollback: bool


class Facts(Protocol):
    """Describes what rules may read of the recipe."""

    steps: int
    precision: Any

    @property
    def model(self) -> ModelFacts: ...
    @property
    def moe(self) -> MoEFacts: ...
    @property
    def objective(self) -> ObjectiveFacts: ...
    @property
    def data(self) -> DataFacts: ...
    @property
    def optim(self) -> OptimFacts: ...
    @property
    def parallel(self) -> ParallelFacts: ...
    @property
    def stability(self) -> StabilityFacts: ...
