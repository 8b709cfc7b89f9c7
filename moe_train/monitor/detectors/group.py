"""Lists the detectors of a run. A new one is a file beside this, and a line here."""

from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.monitor.detectors.dead_experts import DeadExperts
from moe_train.monitor.detectors.detector import Detector
from moe_train.monitor.detectors.device_imbalance import DeviceImbalance
from moe_train.monitor.detectors.drop_storm import DropStorm
from moe_train.monitor.detectors.layer_drift import LayerDrift
from moe_train.monitor.detectors.load_collapse import LoadCollapse
from moe_train.monitor.detectors.load_oscillation import LoadOscillation
from moe_train.monitor.detectors.loss_spike import LossSpike
from moe_train.monitor.detectors.not_finite import NotFinite
from moe_train.monitor.detectors.representation_collapse import RepresentationCollapse
from moe_train.monitor.detectors.router_collapse import RouterCollapse
from moe_train.monitor.detectors.unlearning_router import UnlearningRouter

DETECTORS: tuple[type[Detector], ...] = (
    DeadExperts,
    LoadCollapse,
    LoadOscillation,
    RouterCollapse,
    RepresentationCollapse,
    DeviceImbalance,
    DropStorm,
    UnlearningRouter,
    LossSpike,
    NotFinite,
    LayerDrift,
)


def detectors_of(recipe: Recipe) -> list[Detector]:
    """Returns the detectors that apply to a recipe: those of experts only where there are several."""
    made = [detector(recipe) for detector in DETECTORS]
    has_experts = any(number > 1 for number in spec_of(recipe).num_experts)
    return [one for one in made if one.applies and (has_experts or not tuple(one.needs()))]
