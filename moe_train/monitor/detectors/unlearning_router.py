"""Finds routers that should learn and that next to no gradient reaches: their loads may be perfectly even."""

from collections.abc import Iterable, Mapping

from moe_train.monitor.alarm import Case
from moe_train.monitor.detectors.detector import Detector, Place, Sight, below, of_layer
from moe_train.monitor.detectors.window import Window

LEAST_SHARE = 1e-6
"""Part of the whole model's gradient norm that must reach a router."""


class UnlearningRouter(Detector):
    """Compares the gradient of each router with that of the model."""

    name = "unlearning_router"

    @property
    def applies(self) -> bool:
        return self.expected.learns

    def look(self, window: Window) -> Mapping[Place, Sight]:
        whole = window.row.get("grad_norm")
        if not whole:
            return {}
        found = {layer: window.figure("router_gradient_norm", layer) for layer in window.layers}
        return {
            of_layer(layer): below(norm / whole, LEAST_SHARE, margin=10.0)
            for layer, norm in found.items()
            if norm is not None
        }

    @staticmethod
    def describe(case: Case) -> str:
        return f"the router gets {case.alarm.value:.1e} of the gradient, so it does not learn"

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        router = case.recipe.moe.router
        if getattr(router, "normalize", False) and router.num_choices == 1:
            yield "one expert a token with normalised weights: each weight is 1, whatever the logits"
        if case.balance and not any(case.balance.values()):
            yield "no balance loss reaches it either"

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        if getattr(case.recipe.moe.router, "normalize", False):
            yield "set moe.router.normalize=false, so that the weight of an expert depends on its logit"
        yield "check that the router's weight is in the optimizer and that its coefficient has an effect"

    def needs(self) -> Iterable[str]:
        return ("router_gradient_norm",)
