"""The one currency between router, dispatcher, losses and monitor: a list of edges from tokens to experts.

T tokens on this rank, D model width, E experts, N edges, B sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_train.random import RandomStream


@dataclass(frozen=True)
class RouteContext:
    """All a router, or any other layer, may know besides its input."""

    training: bool
    progress: float
    """Share of the run's steps already made, in [0, 1]."""
    random: RandomStream
    token_values: Int[Tensor, "B S"]
    """Vocabulary ids of the tokens, in the order of the rows a router sees; S consecutive rows are one sequence."""

    @property
    def sequence_length(self) -> int:
        """Tokens in a sequence."""
        return self.token_values.shape[1]


@dataclass(frozen=True)
class Routing:
    """Edges token -> expert. A token may have any number of edges; an expert too."""

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
    entropy: Float[Tensor, ""] | None = None
    """Sum over tokens of the entropy of the router's distribution, in nats; None without a distribution."""
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Auxiliary losses by name, unscaled."""
    coefficients: Mapping[str, float] = field(default_factory=dict)

    def keep(self, mask: Bool[Tensor, " N"]) -> "Routing":
        """The same routing with only the edges where `mask` is true."""
        kept = mask.nonzero().squeeze(1)
        return replace(
            self,
            token_ids=self.token_ids[kept],
            expert_ids=self.expert_ids[kept],
            choices=self.choices[kept],
            weights=self.weights[kept],
        )


class Router(Protocol):
    """Decides which experts see which tokens. Built as `Router(config, d_model=, num_experts=, group=, site=)`."""

    def __call__(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Route the tokens `x`; pure but for its own parameters."""
        ...
