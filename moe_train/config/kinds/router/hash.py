"""Holds the options of `moe.router.kind=hash`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.objective import MaskedConfig
from moe_train.config.kinds.router.fixed import FixedRouterConfig
from moe_train.config.problem import Problem

NUM_CONTEXTS = 512
"""Number of commonest tokens whose neighbours are counted, on both sides, to cluster the vocabulary."""
LARGEST_CLUSTERED_VOCABULARY = 2**17
"""Size of the vocabulary at which the counts temporarily take 2 GiB on every worker."""


@dataclass
class HashRouterConfig(FixedRouterConfig):
    """Configures hash layers (2106.04426): a token's expert is looked up by its vocabulary id."""

    kind: str = "hash"
    table: Literal["balanced", "random", "modulo", "bigram", "clustered", "dispersed"] = (
        "balanced"  # see routers/hash.py
    )
    buckets: int = 100_003  # bigram: entries of the table; a prime number spreads pairs best

    def check(self, recipe: Facts) -> Iterator[Problem]:
        size = recipe.data.tokenizer.size + recipe.objective.num_extra_tokens
        if self.table == "bigram" and self.buckets < size:
            yield Problem(
                "moe.router.buckets",
                self.buckets,
                f"must be at least the {size} tokens of the vocabulary, or bigrams tell less than single tokens",
                "use 100003",
            )
        if self.table in ("clustered", "dispersed"):
            yield from self._check_clusters(size, recipe.moe.num_experts)

    def notes(self, recipe: Facts) -> Iterator[str]:
        objective = recipe.objective
        if isinstance(objective, MaskedConfig) and objective.masked_share > 0 and self.table != "bigram":
            yield (
                f"moe.router.kind={self.kind}: {objective.masked_share:.0%} of the tokens to predict are the one mask "
                "token (objective.masked_share), so all of them go to one expert in each MoE layer; "
                "moe.router.table=bigram looks at the token before too"
            )

    def _check_clusters(self, size: int, num_experts: int) -> Iterator[Problem]:
        if size > LARGEST_CLUSTERED_VOCABULARY:
            yield Problem(
                "moe.router.table",
                self.table,
                f"counts {size} tokens beside {2 * NUM_CONTEXTS} others, but more than {LARGEST_CLUSTERED_VOCABULARY} "
                "take too much memory",
                "use moe.router.table=balanced, or a smaller data.tokenizer.vocab_size",
            )
        if size < num_experts:
            yield Problem(
                "moe.router.table",
                self.table,
                f"needs at least as many tokens in the vocabulary as moe.num_experts={num_experts}, not {size}",
                f"use at most {size} experts, or moe.router.table=bigram",
            )
