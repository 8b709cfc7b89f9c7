"""What all routers share in a recipe, and what the rest of the configuration asks of them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem

if TYPE_CHECKING:
    from moe_train.config.schema import Recipe

BalanceOver = Literal["sequence", "group", "batch"]
BALANCE_COEFFICIENTS = (
    "balance_coefficient",
    "group_balance_coefficient",
    "importance_coefficient",
    "load_coefficient",
)


@dataclass
class RouterConfig(KindConfig):
    """Base of all routers."""

    choices_compete: ClassVar[bool] = True
    """An expert can be the first choice of one token and the second of another."""
    depends_on_expert_number: ClassVar[bool] = False
    """Routing goes by an expert's number, a code or the outcome of a draw, not by what was learned for it."""
    may_split_equal_tokens: ClassVar[bool] = False
    """Equal tokens can get different experts: by their ids, by chance, or by the order in which they come."""
    begins_as_identity: ClassVar[bool] = False
    """The experts' last matrix begins at 0, so that an MoE layer is its residual at first."""
    validation_follows_step: ClassVar[bool] = False
    """What validation gives depends on the updates made, by a schedule of the recipe, and not on the weights alone."""

    @property
    def sees_later_tokens(self) -> bool:
        """What a token gets depends on tokens after it, in validation too: of no use to a causal objective."""
        return False

    @property
    def num_choices(self) -> int:
        """Experts a token is sent to at most (where their number varies: as the kind's own text says)."""
        return 1

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        """Weights of one router."""
        return d_model * num_experts

    def num_products(self, d_model: int, num_experts: int, length: int) -> float:
        """Multiplications of one router per token of a sequence of `length` tokens: one for each of its weights."""
        return self.num_parameters(d_model, num_experts)

    def experts_per_token(self, num_experts: int, length: int) -> float:
        """Returns what a token of a sequence of `length` tokens costs in its experts, as a multiple of one expert."""
        return min(self.num_choices, num_experts)

    def draws_in_training(self, num_experts: int) -> bool:
        """Returns what a token gets in training is a matter of chance too, so that two passes over a batch differ."""
        return False

    @property
    def learns_from_batch(self) -> bool:
        """Some loss that counts is one of all tokens of the global batch together: see moe/whole_batch.py."""
        return False

    def check_stack(self, name: str, length: int) -> Iterator[Problem]:
        """Yields what makes this choice unusable in a stack called `name`, whose sequences have `length` tokens."""
        return iter(())

    def notes(self, recipe: "Recipe") -> Iterator[str]:
        """Yields what is sound in `recipe` but may surprise."""
        return iter(())


@dataclass
class GateConfig(RouterConfig):
    """Base of routers that score experts by logits, a learned matrix times the token."""

    signed_coefficients: ClassVar[tuple[str, ...]] = ()
    """Those that may be below 0; every other field called `*_coefficient` may not."""

    jitter: float = 0.0  # router input times U(1 - jitter, 1 + jitter), training only
    z_coefficient: float = 0.0  # of ST-MoE's router z-loss, the mean of (log sum_i exp z_i)^2

    def draws_in_training(self, num_experts: int) -> bool:
        """By jitter; one expert has weight 1 whatever its logit is, but where that goes through a sigmoid."""
        return self.jitter > 0 and num_experts > 1

    def check(self, recipe: "Recipe") -> Iterator[Problem]:
        if not 0 <= self.jitter < 1:
            yield Problem("moe.router.jitter", self.jitter, "must be in [0, 1)", "use 0.01, or 0 for none")
        yield from self._check_coefficients()

    def _check_coefficients(self) -> Iterator[Problem]:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name.endswith("_coefficient") and name not in self.signed_coefficients and value < 0:
                yield Problem(
                    f"moe.router.{name}",
                    value,
                    "must be at least 0, or training makes large what this loss is there to make small",
                    f"its default is {field.default}",
                )


@dataclass
class BalanceLossConfig(GateConfig):
    """Base of routers that learn to use their experts evenly, by a loss of the loads of a set of tokens."""

    balance_over: BalanceOver = (
        "batch"  # tokens whose loads are to be even: of each sequence, routing group or batch
    )

    @property
    def learns_from_batch(self) -> bool:
        return self.balance_over == "batch" and any(getattr(self, name, 0) for name in BALANCE_COEFFICIENTS)


def capacity_must_be_null(recipe: "Recipe") -> Iterator[Problem]:
    """For routers that settle themselves how many tokens an expert gets."""
    for key in ("capacity_factor", "eval_capacity_factor"):
        factor = getattr(recipe.moe, key)
        if factor is not None:
            yield Problem(
                f"moe.{key}",
                factor,
                f"would drop tokens, and moe.router.kind={recipe.moe.router.kind} knows no capacity limit",
                f"set moe.{key}=null",
            )


def k_must_fit(k: int, recipe: "Recipe") -> Iterator[Problem]:
    """For routers whose recipe says how many experts a token is sent to."""
    experts = recipe.moe.num_experts
    if not 1 <= k <= experts:
        yield Problem(
            "moe.router.k",
            k,
            f"must be between 1 and moe.num_experts={experts}",
            f"set moe.router.k to at most {experts} or raise moe.num_experts",
        )
