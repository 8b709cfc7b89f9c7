"""Finds layers that leave most of their experts unused, whatever the balance loss says."""

from collections.abc import Iterable, Mapping

from moe_train.monitor.alarm import Case
from moe_train.monitor.balance import top_share
from moe_train.monitor.detectors.advice import calmer_router, more_balance, no_balance
from moe_train.monitor.detectors.detector import Place, SettlingDetector, Sight, above, below, of_layer
from moe_train.monitor.detectors.window import Window

USED_SHARE = 0.5
"""Effective experts must be this part of all, and of what they were when the layer had settled."""
SEVERE = 0.4
"""Part of this limit below which a collapse is critical: no healthy run is there, in its first steps either."""
TOP_SHARE = 0.5
"""No expert may have more of the assignments, where there are more than FEW experts."""
FEW = 4
BLIND = 1.1
"""A balance loss a layer, 1 at even loads, below which it does not see a collapse."""


class LoadCollapse(SettlingDetector):
    """Looks at the effective number of experts and at the busiest one."""

    name = "load_collapse"
    early = ("critical",)

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        return {of_layer(layer): self._sight(window, layer) for layer in window.layers}

    @staticmethod
    def describe(case: Case) -> str:
        value, limit = case.alarm.value, case.alarm.limit
        if value > 1:
            return f"as few as {value:.1f} effective experts, where {limit:.1f} are the least"
        return f"one expert has {value:.0%} of the tokens"

    @staticmethod
    def causes(case: Case) -> Iterable[str]:
        yield from no_balance(case)
        balance, layers = (case.row.get("losses") or {}).get("balance"), len(case.row["moe"]["load"])
        if any(case.balance.values()) and balance is not None and balance < BLIND * layers:
            yield (
                f"the balance loss is near its least ({balance / layers:.2f} a layer, 1 is even) although the loads "
                "are uneven: it does not see them"
            )

    @staticmethod
    def advice(case: Case) -> Iterable[str]:
        yield from more_balance(case)
        yield from calmer_router(case)

    def needs(self) -> Iterable[str]:
        return ("load",)

    def _sight(self, window: Window, layer: int) -> Sight:
        load, used = window.loads[layer], window.effective_experts(layer)
        usual = self._settled.add(layer, used)
        limit = USED_SHARE * max(len(load) if len(load) > 2 else 0, usual or 0)
        sight = below(used, limit, margin=1.2, severity="critical" if used < SEVERE * limit else "warning")
        if not sight.is_ill and len(load) > FEW:
            share = above(top_share(load), TOP_SHARE)
            sight = share if share.is_ill or not share.is_well else sight
        return sight
