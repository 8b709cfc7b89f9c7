"""Defines the currency of router, dispatcher, losses and monitor: a list of edges from tokens to experts.

T tokens on this rank, D model width, E experts, N edges, B sequences, V vocabulary, K choices.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.moe.recompute import Decision, Run, kept, recomputed
from moe_train.moe.rows import Rows
from moe_train.random import RandomStream
from moe_train.results import Policy, SetLoss

SMALLEST_SUM = 1e-9
"""Weights of a token that sum to less are divided by this: a kept second choice may have a probability of 0."""


@dataclass(frozen=True)
class Pass:
    """Describes a whole forward pass, independently of the rows that a layer sees."""

    training: bool
    progress: float
    """Share of the run's steps already made, in [0, 1]."""
    random: RandomStream

    @property
    def step(self) -> int:
        """Updates already made."""
        return self.random.step


@dataclass(frozen=True)
class RouteContext:
    """Holds everything a layer may know besides its input: in which pass it runs, and on which rows."""

    forward_pass: Pass
    rows: Rows
    decision: Decision | None = None
    """Holds what the router decided, in a part of the model that may run again (recompute.py)."""

    @classmethod
    def outside_of_a_run(cls, tokens: Int[Tensor, "B S"], training: bool) -> "RouteContext":
        """Returns that of a pass over whole sequences at step 0, with the draws of seed 0."""
        sequence_ids = torch.arange(len(tokens), device=tokens.device)
        return cls(Pass(training, 0.0, RandomStream(0, 0)), Rows(sequence_ids, tokens))

    @property
    def run(self) -> Run:
        """Returns how a router runs what decides nothing, such as draws: where its layer runs again, so does this."""
        return kept if self.decision is None else recomputed

    @property
    def training(self) -> bool:
        """Returns whether to draw at all: nothing is random in validation."""
        return self.forward_pass.training

    def uniform(self, site: str, *shape: int) -> Float[Tensor, "T ..."]:
        """Returns uniform numbers in [0, 1) of shape [T, *shape]; a row has the same ones whatever rows are beside it.

        So numbers are drawn for all places of a sequence, and those of absent rows are dropped.
        """
        ids, length = self.rows.sequence_ids, self.rows.of_whole_sequences.length
        draws = self.forward_pass.random.uniform(site, ids, length, *shape)
        return self.rows.take(self.rows.part_of(draws))


class RouterFigures(NamedTuple):
    """Holds what a router's logits say about it: sums over (real) tokens, without gradient.

    moe/figures.py shows each of them as a mean over tokens. The first two are of the softmax over all experts.
    """

    entropy: Float[Tensor, ""]
    """In nats."""
    top_probability: Float[Tensor, ""]
    """The largest probability."""
    z: Float[Tensor, ""]
    """The squared logsumexp, summed over the router's softmaxes: the z-loss of ST-MoE (2202.08906) eq. 5."""
    logit_square: Float[Tensor, ""]
    """The mean square of the logits less the token's mean, in each softmax."""


@dataclass(frozen=True)
class Routing:
    """Holds edges token -> expert. A token may have any number of edges; an expert too."""

    token_ids: Int[Tensor, " N"]
    expert_ids: Int[Tensor, " N"]
    choices: Int[Tensor, " N"]
    """0 for a token's first choice, 1 for its second, ...: no two edges of a token share one."""
    weights: Float[Tensor, " N"]
    """Factor of the expert's output in the token's; carries the router's gradient."""
    num_tokens: int
    num_experts: int
    num_choices: int
    """Upper bound of `choices`."""
    figures: RouterFigures | None = None
    """None without logits."""
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Auxiliary losses by name, unscaled, of the tokens at hand."""
    batch_losses: Mapping[str, SetLoss] = field(default_factory=dict)
    """Those of `losses` that are losses of the global batch, of which these tokens may be a part."""
    coefficients: Mapping[str, float] = field(default_factory=dict)
    priority: Float[Tensor, " T"] | None = None
    """Among equal choices an expert serves tokens with a higher one first; None: earlier tokens first."""
    alternatives: bool = False
    """A token goes to the first of its experts that has room, not to all of them."""
    normalize_kept: bool = False
    """Once the capacity limit has been applied, a token's weights are divided by their sum."""
    policy: Policy | None = None
    """Of a router that learns by reward (moe/policy.py)."""

    def keep(self, mask: Bool[Tensor, " N"]) -> "Routing":
        """Returns the same routing with only the edges where `mask` is true."""
        kept = mask.nonzero().squeeze(1)
        return replace(
            self,
            token_ids=self.token_ids[kept],
            expert_ids=self.expert_ids[kept],
            choices=self.choices[kept],
            weights=self.weights[kept],
        )

    def weight_table(self) -> Float[Tensor, "T K"]:
        """Returns the weights by token and choice, 0 where there is no edge."""
        slots = self.token_ids * self.num_choices + self.choices
        table = self.weights.new_zeros(self.num_tokens * self.num_choices)
        return table.scatter(0, slots, self.weights).view(self.num_tokens, self.num_choices)

    def first_choices(self) -> "Routing":
        """Returns the same routing with each token's first choice alone."""
        return self.keep(self.choices == 0).as_first_choices()

    def as_first_choices(self) -> "Routing":
        """Returns the same routing with each token's only edge as its first choice."""
        return replace(self, choices=torch.zeros_like(self.choices), num_choices=1)

    def normalized(self) -> "Routing":
        """Divides each token's weights by their sum, unless the sum is almost 0."""
        totals = self.weights.new_zeros(self.num_tokens).index_add(0, self.token_ids, self.weights)
        return replace(self, weights=self.weights / totals[self.token_ids].clamp(min=SMALLEST_SUM))


class Router(Protocol):
    """Decides which experts see which tokens. Built as `Router(config, d_model=, num_experts=, group=, site=)`."""

    def __call__(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Routes the tokens `x`; pure except for its own parameters and buffers."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Describes the run's tokens to a router before the first step."""

    size: int
    count: Callable[[], Int[Tensor, " V"]]
    """Counts how often each token occurs in the training text: a pass over it, made only if it is asked for."""
    vectors: Callable[[], Float[Tensor, "V N"]]
    """Vectors that are alike where tokens have like neighbours there (token_vectors.py): another pass."""

    @classmethod
    def without_text(cls, size: int) -> "Vocabulary":
        """Describes the tokens of a model whose tables will be loaded or do not matter: every token counts the same."""
        return cls(
            size,
            lambda: torch.ones(size, dtype=torch.int64),
            lambda: torch.zeros(size, 1, dtype=torch.float64),
        )


class TableRouter(ABC):
    """Is a router with a fixed table, its buffer `table`, made before the first step and saved with the model.

    Its class derives from this one: from Python 3.12 on a buffer is no attribute that a protocol could ask for.
    """

    table: Tensor | None

    @abstractmethod
    def make_table(self, vocabulary: Vocabulary, generator: torch.Generator) -> Int[Tensor, "..."]:
        """Returns the table, on the CPU; `generator` is in the same state on every rank."""


@runtime_checkable
class LoadRouter(Protocol):
    """Is a router with buffers that follow the loads of its experts; they begin at 0 and are saved with the model."""

    def after_update(self, load: Int[Tensor, " E"]) -> None:
        """Is called after every update with each expert's assignments in the global batch."""
        ...


@runtime_checkable
class GaugedRouter(Protocol):
    """Is a router with figures that are no sums over tokens: rows show them as they are when the row is written."""

    def gauges(self, step: int) -> Mapping[str, float | Float[Tensor, ""]]:
        """Returns them by name, of the update that `step` updates came before: NaN where there is none yet."""
        ...


@runtime_checkable
class SpawningRouter(Protocol):
    """Is a router that trains expert 0 alone at first, and then has all experts made from it."""

    def spawn_mask(self, updates: int) -> float | None:
        """Returns the share of weights that every copy lacks if copies are made after this update; None otherwise."""
        ...
