"""Finds layers that leave most of their experts unused, whatever the balance loss says."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_train.monitor.balance import effective_experts, top_share
from moe_train.monitor.detectors.detector import Detector, Place, Settled, Sight, above, below, of_layer
from moe_train.monitor.detectors.window import Window

USED_SHARE = 0.5
"""Effective experts must be this part of all, and of what they were when the layer had settled."""
SEVERE = 0.4
"""Part of this limit below which a collapse is critical: no healthy run is there, in its first steps either."""
TOP_SHARE = 0.5
"""No expert may have more of the assignments, where there are more than FEW experts."""
FEW = 4


class LoadCollapse(Detector):
    """Looks at the effective number of experts and at the busiest one."""

    name = "load_collapse"
    early = ("critical",)

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._settled = Settled()

    @property
    def applies(self) -> bool:
        return self.expected.uses_all_experts

    def look(self, window: Window) -> Mapping[Place, Sight]:
        return {of_layer(layer): self._sight(window.loads[layer], layer) for layer in window.layers}

    def needs(self) -> Iterable[str]:
        return ("load",)

    def clear(self) -> None:
        self._settled.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"settled": self._settled.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._settled.load(state["settled"])

    def _sight(self, load: Any, layer: int) -> Sight:
        used = effective_experts(load)
        usual = self._settled.add(layer, used)
        limit = USED_SHARE * max(len(load) if len(load) > 2 else 0, usual or 0)
        sight = below(used, limit, margin=1.2, severity="critical" if used < SEVERE * limit else "warning")
        if not sight.is_ill and len(load) > FEW:
            share = above(top_share(load), TOP_SHARE)
            sight = share if share.is_ill or not share.is_well else sight
        return sight
