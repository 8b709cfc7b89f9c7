"""Puts an alarm into words: what is seen, what in the recipe and in the rows may cause it, and what to change.

Sentences name recipe keys with their values. Everything is read from the recipe and the rows, so a replay says what the
run itself said.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_train.config.kinds.router.router import BALANCE_COEFFICIENTS
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.monitor.alarms import MOST_NAMED, Alarm, Rise
from moe_train.monitor.rows import Row

NEAR = 200
"""Steps after a rise of the learning rate within which it is named as a cause."""


@dataclass(frozen=True)
class Case:
    """Holds what an explanation may draw on."""

    alarm: Alarm
    recipe: Recipe
    row: Row
    """The last one of the window."""
    rise: Rise | None = None

    @property
    def balance(self) -> Mapping[str, float]:
        """Returns the router's balance coefficients by key."""
        router = self.recipe.moe.router
        return {name: getattr(router, name) for name in BALANCE_COEFFICIENTS if hasattr(router, name)}


def message(case: Case) -> str:
    """Returns what is seen, in one sentence."""
    alarm = case.alarm
    return f"{_where(case)} {SEEN[alarm.detector](case)}, since step {alarm.since}"


def causes(case: Case) -> list[str]:
    """Returns what may have led there, the likeliest first."""
    return [*_rate_rose(case), *CAUSES.get(case.alarm.detector, _none)(case)]


def advice(case: Case) -> list[str]:
    """Returns what to change, in terms of the recipe."""
    return list(ADVICE.get(case.alarm.detector, _none)(case))


def event(case: Case) -> dict[str, Any]:
    """Returns the fields of the event `alarm`."""
    words = {"message": message(case), "causes": causes(case), "advice": advice(case)}
    return case.alarm.as_fields() | words


def _where(case: Case) -> str:
    alarm = case.alarm
    if not alarm.layers:
        return "the run:"
    names = spec_of(case.recipe).moe_layers
    layers = [str(names[layer]) if layer < len(names) else f"#{layer}" for layer in alarm.layers]
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {_listed(layers)}"
    if not alarm.experts:
        return f"{where}:"
    experts = [str(expert) for expert in alarm.experts]
    named = f"expert {experts[0]}" if len(experts) == 1 else f"experts {_listed(experts)}"
    return f"{where}: {named}"


def _listed(words: Sequence[str]) -> str:
    if len(words) > MOST_NAMED:
        return f"{', '.join(words[:MOST_NAMED])} and {len(words) - MOST_NAMED} more"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _dead(case: Case) -> str:
    of = "has" if len(case.alarm.experts) == 1 else "have"
    return f"{of} less than a tenth of the fair share of the tokens, or next to no gradient"


def _collapsed(case: Case) -> str:
    alarm = case.alarm
    if alarm.value > 1:
        return f"as few as {alarm.value:.1f} effective experts, where {alarm.limit:.1f} are the least"
    return f"one expert has {alarm.value:.0%} of the tokens"


SEEN: Mapping[str, Callable[[Case], str]] = {
    "dead_experts": _dead,
    "load_collapse": _collapsed,
    "load_oscillation": lambda case: (
        f"the experts that were preferred are avoided in the next row (correlation {case.alarm.value:.2f})"
    ),
    "router_collapse": lambda case: (
        f"the router's logits or their entropy have left what was usual ({case.alarm.value:.3g}, limit "
        f"{case.alarm.limit:.3g})"
    ),
    "representation_collapse": lambda case: (
        f"two experts have become the same (cosine {case.alarm.value:.3f} of their weights)"
    ),
    "device_imbalance": lambda case: (
        f"the busiest worker has {case.alarm.value:.2f} times the mean load, and all others wait for it"
    ),
    "drop_storm": lambda case: f"{case.alarm.value:.0%} of the assignments are dropped",
    "unlearning_router": lambda case: (
        f"the router gets {case.alarm.value:.1e} of the gradient, so it does not learn"
    ),
    "loss_spike": lambda case: (
        f"the loss reached {case.alarm.value:.4g}, where {case.alarm.limit:.4g} is usual"
    ),
    "not_finite": lambda case: "a loss, a gradient or a router's figure is not a finite number",
    "layer_drift": lambda case: (
        f"a figure moves towards its limit at every window ({case.alarm.value:.2f}, limit {case.alarm.limit:.2f})"
    ),
}


def _none(case: Case) -> Iterator[str]:
    return iter(())


def _rate_rose(case: Case) -> Iterator[str]:
    rise, since = case.rise, case.alarm.since
    if rise is not None and rise.step <= case.row["step"] and since - rise.step <= NEAR:
        yield f"the learning rate rose from {rise.before:.3g} to {rise.after:.3g} at step {rise.step}"


def _no_balance(case: Case) -> Iterator[str]:
    coefficients, rate = case.balance, getattr(case.recipe.moe.router, "bias_rate", 0.0)
    if coefficients and not any(coefficients.values()) and not rate:
        keys = ", ".join(f"moe.router.{name}=0" for name in coefficients)
        yield f"nothing keeps the loads even: {keys}"
    if case.alarm.detector != "load_collapse":
        return
    losses = case.row.get("losses") or {}
    balance = losses.get("balance")
    layers = len(case.row["moe"]["load"]) if case.row.get("moe") else 0
    if any(coefficients.values()) and balance is not None and layers and balance / layers < 1.1:
        yield (
            f"the balance loss is near its least ({balance / layers:.2f} a layer, 1 is even) although the loads are "
            "uneven: it does not see them"
        )


def _more_balance(case: Case) -> Iterator[str]:
    router = case.recipe.moe.router
    for name, value in case.balance.items():
        if name in ("balance_coefficient", "load_coefficient"):
            more = value * 10 if value else 0.01
            yield f"raise moe.router.{name}={value:g}, to {more:g} for one"
    if rate := getattr(router, "bias_rate", 0.0):
        yield f"raise moe.router.bias_rate={rate:g}, by which an expert's bias follows its load"


def _calmer_router(case: Case) -> Iterator[str]:
    router = case.recipe.moe.router
    if (z := getattr(router, "z_coefficient", None)) is not None:
        more = z * 10 if z else 1e-3
        yield f"raise moe.router.z_coefficient={z:g}, which keeps the logits small, to {more:g} for one"
    yield f"lower optim.lr={case.recipe.optim.lr:g}, or lengthen optim.schedule.warmup_steps"


def _collapse_advice(case: Case) -> Iterator[str]:
    yield from _more_balance(case)
    yield from _calmer_router(case)


def _small_capacity(case: Case) -> Iterator[str]:
    yield f"the loads exceed moe.capacity_factor={case.recipe.moe.capacity_factor:g} times the fair share"
    yield from _no_balance(case)


def _more_capacity(case: Case) -> Iterator[str]:
    factor = case.recipe.moe.capacity_factor
    if factor is not None:
        yield f"raise moe.capacity_factor={factor:g}, or set it to null, which drops nothing"
    yield from _more_balance(case)


def _strong_correction(case: Case) -> Iterator[str]:
    router = case.recipe.moe.router
    if rate := getattr(router, "bias_rate", 0.0):
        yield f"moe.router.bias_rate={rate:g} corrects the loads by more than they are off"
    yield f"optim.lr={case.recipe.optim.lr:g} may be too high for the router"


def _weaker_correction(case: Case) -> Iterator[str]:
    if rate := getattr(case.recipe.moe.router, "bias_rate", 0.0):
        yield f"lower moe.router.bias_rate={rate:g}, to {rate / 10:g} for one"
    for name, value in case.balance.items():
        if value:
            yield f"lower moe.router.{name}={value:g}"
    yield f"lower optim.lr={case.recipe.optim.lr:g}"


def _fewer_experts_a_worker(case: Case) -> Iterator[str]:
    yield f"lower parallel.expert={case.recipe.parallel.expert}, so that a worker holds more experts"
    yield from _more_balance(case)


def _no_gradient(case: Case) -> Iterator[str]:
    router = case.recipe.moe.router
    if getattr(router, "normalize", False) and router.num_choices == 1:
        yield "one expert a token with normalised weights: each weight is 1, whatever the logits"
    coefficients = case.balance
    if coefficients and not any(coefficients.values()):
        yield "no balance loss reaches it either"


def _let_it_learn(case: Case) -> Iterator[str]:
    if getattr(case.recipe.moe.router, "normalize", False):
        yield "set moe.router.normalize=false, so that the weight of an expert depends on its logit"
    yield "check that the router's weight is in the optimizer and that its coefficient has an effect"


def _calmer_run(case: Case) -> Iterator[str]:
    yield f"lower optim.lr={case.recipe.optim.lr:g}, or lengthen optim.schedule.warmup_steps"
    if not case.recipe.stability.rollback:
        yield "set stability.rollback=true, which goes back to a checkpoint from before and passes these batches over"


def _skip_them(case: Case) -> Iterator[str]:
    if not case.recipe.stability.skip_non_finite:
        yield "set stability.skip_non_finite=true, which skips such updates"
    yield from _calmer_router(case)


CAUSES: Mapping[str, Callable[[Case], Iterator[str]]] = {
    "dead_experts": _no_balance,
    "load_collapse": _no_balance,
    "load_oscillation": _strong_correction,
    "drop_storm": _small_capacity,
    "device_imbalance": _no_balance,
    "unlearning_router": _no_gradient,
}
ADVICE: Mapping[str, Callable[[Case], Iterator[str]]] = {
    "dead_experts": _more_balance,
    "load_collapse": _collapse_advice,
    "load_oscillation": _weaker_correction,
    "router_collapse": _calmer_router,
    "device_imbalance": _fewer_experts_a_worker,
    "drop_storm": _more_capacity,
    "unlearning_router": _let_it_learn,
    "loss_spike": _calmer_run,
    "not_finite": _skip_them,
    "layer_drift": _more_balance,
    "representation_collapse": lambda case: iter(
        ["draw the experts' first values apart, or give them different tokens: raise the noise of the router"]
    ),
}
