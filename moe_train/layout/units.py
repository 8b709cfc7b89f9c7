"""Writes amounts of memory and work, and counts of things, in few characters."""

from moe_train.config.plan import ParallelPlan

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def amount(number: float) -> str:
    """Writes bytes with three or four digits: "57.7 GiB"."""
    unit = 0
    while number >= 1024 and unit < len(BYTE_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return (
        f"{number:,.0f} {BYTE_UNITS[unit]}"
        if unit == 0 or number >= 100
        else f"{number:,.3g} {BYTE_UNITS[unit]}"
    )


def counted(number: int, noun: str, plural: str = "") -> str:
    """Writes a number with its noun: "1 group", "1,024 groups"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def degrees(plan: ParallelPlan) -> str:
    """Writes the degrees of both meshes, without those of 1: "data 128 x tensor 8; experts: replica 16 x expert 64"."""
    dense = _product({"data": plan.data, "tensor": plan.tensor})
    experts = _product({"replica": plan.replicas, "expert": plan.expert, "expert_tensor": plan.expert_tensor})
    return f"{dense}; experts: {experts}"


def _product(named: dict[str, int]) -> str:
    return " x ".join(f"{name} {degree:,}" for name, degree in named.items() if degree > 1) or "1"
