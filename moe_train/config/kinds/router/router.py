"""Defines the base of all routers' options, and what the rest of the configuration asks of a router."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.kinds.router.expectations import Expectations
from moe_train.config.problem import Problem

BalanceOver = Literal["sequence", "group", "batch"]
BALANCE_COEFFICIENTS = (
    "balance_coefficient",
    "group_balance_coefficient",
    "importance_coefficient",
    "load_coefficient",
)


@dataclass
class RouterConfig(KindConfig):
    """Is the base of all routers."""

    choices_compete: ClassVar[bool] = True
    """Whether an expert can be the first choice of one token and the second of another."""
    depends_on_expert_number: ClassVar[bool] = False
    """Whether routing depends on an expert's number (a code, the outcome of a draw) instead of learned weights."""
    may_split_equal_tokens: ClassVar[bool] = False
    """Whether equal tokens can get different experts: by their ids, by chance, or by their order."""
    scores_residual: ClassVar[bool] = False
    """Whether the router sees the residual stream instead of its norm, which is what experts receive."""
    begins_as_identity: ClassVar[bool] = False
    """Whether the experts' last matrix begins at 0, so that an MoE layer begins as its residual."""
    sends_rows: ClassVar[bool] = True
    """Whether its layer sends rows to experts by `MoELayer.through`; if not, weights come to the rows."""
    validation_follows_step: ClassVar[bool] = False
    """Whether validation depends on the number of updates, by a schedule of the recipe, beside the weights."""

    @property
    def sees_later_tokens(self) -> bool:
        """Returns whether routing depends on later tokens, in validation too, which a causal objective cannot use."""
        return False

    @property
    def num_choices(self) -> int:
        """Returns the most experts that a token has (the kind's own docstring explains it if the number varies)."""
        return 1

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        """Returns the number of weights of one router."""
        return d_model * num_experts

    def num_products(self, d_model: int, num_experts: int, length: int) -> float:
        """Returns a router's multiplications per token of a sequence of `length` tokens: one for each weight."""
        return self.num_parameters(d_model, num_experts)

    def experts_per_token(self, num_experts: int, length: int) -> float:
        """Returns a token's cost in experts, as a multiple of one expert, in a sequence of `length` tokens."""
        return min(self.num_choices, num_experts)

    def draws_in_training(self, num_experts: int) -> bool:
        """Returns whether routing in training is random, so that two passes over a batch differ."""
        return False

    @property
    def learns_from_batch(self) -> bool:
        """Returns whether a loss with a coefficient is over all tokens of the global batch: see moe/whole_batch.py."""
        return False

    def expectations(self) -> Expectations:
        """Returns what the rows of a healthy run look like."""
        return Expectations()

    def check_stack(self, name: str, length: int) -> Iterator[Problem]:
        """Yields the problems of this choice in the stack `name`, whose sequences have `length` tokens."""
        return iter(())

    def notes(self, recipe: Facts) -> Iterator[str]:
        """Yields what is valid in `recipe` but may surprise."""
        return iter(())


@dataclass
class GateConfig(RouterConfig):
    """Is the base of routers that score experts by logits, a learned matrix times the token."""

    signed_coefficients: ClassVar[tuple[str, ...]] = ()
    """Fields `*_coefficient` that may be negative; all others may not."""
    begins_by_itself: ClassVar[bool] = False
    """Whether the kind decides by itself how its matrix begins: it is 0, or orthogonal."""

    init_scale: float | None = None  # s of the router's matrix alone, as model.init_scale; null: that
    jitter: float = 0.0  # router input times U(1 - jitter, 1 + jitter), training only
    z_coefficient: float = 0.0  # of ST-MoE's router z-loss, the mean of (log sum_i exp z_i)^2

    def draws_in_training(self, num_experts: int) -> bool:
        """Returns whether there is jitter; a single expert has weight 1 whatever its logit, except after a sigmoid."""
        return self.jitter > 0 and num_experts > 1

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if not 0 <= self.jitter < 1:
            yield Problem("moe.router.jitter", self.jitter, "must be in [0, 1)", "use 0.01, or 0 for none")
        yield from self._check_coefficients()
        yield from self._check_init_scale()

    def _check_init_scale(self) -> Iterator[Problem]:
        key, scale = "moe.router.init_scale", self.init_scale
        if scale is not None and self.begins_by_itself:
            yield Problem(
                key, scale, f"does not apply: moe.router.kind={self.kind} begins in its own way", "set null"
            )
        elif scale is not None and scale <= 0:
            yield Problem(key, scale, "must be above 0", "leave it at null for model.init_scale")

    def _check_coefficients(self) -> Iterator[Problem]:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name.endswith("_coefficient") and name not in self.signed_coefficients and value < 0:
                yield Problem(
                    f"moe.router.{name}",
                    value,
                    "must be at least 0: a negative coefficient rewards what the loss penalises",
                    f"its default is {field.default}",
                )


@dataclass
class BalanceLossConfig(GateConfig):
    """Is the base of routers that learn to use their experts evenly, by a loss of the loads of a set of tokens."""

    balance_over: BalanceOver = (
        "batch"  # tokens whose loads are to be even: of each sequence, routing group or batch
    )

    @property
    def learns_from_batch(self) -> bool:
        return self.balance_over == "batch" and any(getattr(self, name, 0) for name in BALANCE_COEFFICIENTS)


def capacity_must_be_null(recipe: Facts) -> Iterator[Problem]:
    """Refuses capacity factors for routers that have no capacity limit."""
    for key in ("capacity_factor", "eval_capacity_factor"):
        factor = getattr(recipe.moe, key)
        if factor is not None:
            yield Problem(
                f"moe.{key}",
                factor,
                f"does not apply: moe.router.kind={recipe.moe.router.kind} has no capacity limit",
                f"set moe.{key}=null",
            )


def k_must_fit(k: int, recipe: Facts) -> Iterator[Problem]:
    """Requires 1 to moe.num_experts experts per token."""
    experts = recipe.moe.num_experts
    if not 1 <= k <= experts:
        yield Problem(
            "moe.router.k",
            k,
            f"must be between 1 and moe.num_experts={experts}",
            f"set moe.router.k to at most {experts} or raise moe.num_experts",
        )
