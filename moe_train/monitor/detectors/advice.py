"""Holds sentences that several detectors say of causes and cures. They name recipe keys with their values."""

from collections.abc import Iterator

from moe_train.monitor.alarm import Case


def no_balance(case: Case) -> Iterator[str]:
    """Yields that the recipe does nothing to keep the loads even."""
    coefficients, rate = case.balance, getattr(case.recipe.moe.router, "bias_rate", 0.0)
    if coefficients and not any(coefficients.values()) and not rate:
        keys = ", ".join(f"moe.router.{name}=0" for name in coefficients)
        yield f"nothing keeps the loads even: {keys}"


def more_balance(case: Case) -> Iterator[str]:
    """Yields what would keep the loads more even."""
    for name, value in case.balance.items():
        if name in ("balance_coefficient", "load_coefficient"):
            yield f"raise moe.router.{name}={value:g}, to {value * 10 or 0.01:g} for one"
    if rate := getattr(case.recipe.moe.router, "bias_rate", 0.0):
        yield f"raise moe.router.bias_rate={rate:g}, by which an expert's bias follows its load"


def calmer_router(case: Case) -> Iterator[str]:
    """Yields what would keep the router's logits small."""
    if (z := getattr(case.recipe.moe.router, "z_coefficient", None)) is not None:
        yield f"raise moe.router.z_coefficient={z:g}, which keeps the logits small, to {z * 10 or 1e-3:g} for one"
    yield lower_rate(case)


def lower_rate(case: Case) -> str:
    """Returns the advice for most that goes wrong."""
    return f"lower optim.lr={case.recipe.optim.lr:g}, or lengthen optim.schedule.warmup_steps"
