"""All routers, objectives, architectures and optimizers of the registry train like one process, or are refused.

On tensor groups, with experts spread over tensor ranks, and under DeepSpeed's ZeRO 2. The registry itself is read, so
a new kind is tried at once, with its own options or those of the matrix.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import get_args, get_type_hints

import pytest
from gloo_workers import run_workers
from layout_run import LayoutRun, train
from matrix import AXES, BASE, DROPLESS, Overrides
from test_matrix import PLAIN, assert_same
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.registry import OWN_KINDS
from moe_train.config.schema import ModelConfig
from moe_train.parallel.world import World

LAYOUTS: dict[str, Overrides] = {
    "tensor": ("parallel.tensor=2",),
    "folded": ("parallel.tensor=2", "parallel.expert=2"),
    "sequence": ("parallel.tensor=2", "parallel.expert=2", "parallel.sequence=true"),
    "stage 2": ("engine.kind=deepspeed", "engine.stage=2", "parallel.expert=2"),
    "stage 2, tensor": ("engine.kind=deepspeed", "engine.stage=2", "parallel.tensor=2"),
}
RANGES = (
    "hands the optimizer ranges of flattened weights, but optim.kind=adafactor needs their rows and columns"
)
REFUSED = {("optim=adafactor", "stage 2"): RANGES, ("optim=adafactor", "stage 2, tensor"): RANGES}
"""What does not stand together, and the reason that `show` prints."""
AXIS_OF = {
    "moe.router": "router",
    "objective": "objective",
    "optim": "optimizer",
    "engine": "engine",
    "moe.dispatch": "dispatch",
}
"""The axis of the matrix that has a value for each kind of a place."""
Case = tuple[str, str, Overrides]
"""A model's name, a layout's, and the model's overrides."""


def options(place: str, kind: str) -> Overrides:
    """The first value in the matrix with this kind; the kind alone if it has none."""
    chosen = f"{place}.kind={kind}"
    values = AXES[AXIS_OF[place]].values()
    return next((value for value in values if chosen in value), (chosen,))


def models() -> Iterator[tuple[str, Overrides]]:
    """A model for each router and optimizer, and for each objective with each of its architectures."""
    for kind in OWN_KINDS["moe.router"]:
        router = (*DROPLESS, *options("moe.router", kind))
        # The first objective that can train it: not every router serves a decoder, or a single pass.
        pairs = ((*BASE, *objective, *router) for objective in AXES["objective"].values())
        yield f"moe.router={kind}", next(pair for pair in pairs if not problems(tiny_recipe(*pair), 1))
    for kind in OWN_KINDS["optim"]:
        yield f"optim={kind}", (*BASE, *options("optim", kind))
    for kind, entry in OWN_KINDS["objective"].items():
        for architecture in entry.config.architectures:
            own = (*options("objective", kind), f"model.architecture={architecture}")
            recipe = tiny_recipe(*own)
            if recipe.objective.reads_pairs(recipe):
                own = ("data.corpus.kind=parallel_files", "data.corpus.path=pairs", *own)
            yield f"objective={kind}, {architecture}", (*BASE, *own)


def cases_and_refusals() -> tuple[list[Case], dict[tuple[str, str], str]]:
    """What may train on two workers, and what `show` says of the rest. DeepSpeed comes last: it changes torch."""
    cases, refused = [], {}
    for name, model in models():
        for layout, degrees in LAYOUTS.items():
            if found := problems(tiny_recipe(*model, *degrees), 2):
                refused[name, layout] = "\n".join(map(str, found))
            else:
                cases.append((name, layout, model))
    return sorted(cases, key=lambda case: case[1].startswith("stage")), refused


def train_all(world: World, cases: list[Case]) -> tuple[dict[Overrides, LayoutRun], list[LayoutRun]]:
    """The runs of one process that are this rank's to make, and those of both ranks."""
    alone = World(0, 1, 0, 1, world.device)
    models = list(dict.fromkeys(model for _, _, model in cases))
    expected = {model: train(alone, *model) for model in models[world.rank :: world.size]}
    return expected, [train(world, *model, *LAYOUTS[layout]) for _, layout, model in cases]


def test_every_kind_is_in_the_matrix():
    plain = tiny_recipe()
    for place, axis in AXIS_OF.items():
        overrides = [each for value in AXES[axis].values() for each in value]
        named = {
            each.removeprefix(f"{place}.kind=") for each in overrides if each.startswith(f"{place}.kind=")
        }
        missing = OWN_KINDS[place].keys() - named - {attrgetter(place)(plain).kind}
        assert not missing, f"{place}: {missing} need values in AXES"


@pytest.mark.distributed_exhaustive
def test_all_kinds_train_like_one_process_on_two_workers_or_are_refused():
    cases, refused = cases_and_refusals()
    assert refused.keys() == REFUSED.keys()
    for case, reason in REFUSED.items():
        assert reason in refused[case]
    trained = {name.rpartition(", ")[2] for name, _, _ in cases if name.startswith("objective=")}
    assert trained == set(get_args(get_type_hints(ModelConfig)["architecture"]))
    of_ranks = run_workers(2, train_all, cases, timeout_s=1100)
    expected = {model: run for alone, _ in of_ranks for model, run in alone.items()}
    failed = []
    for index, (name, layout, model) in enumerate(cases):
        recipe = tiny_recipe(*model)
        choice = PLAIN | {"router": recipe.moe.router.kind, "optimizer": recipe.optim.kind}
        try:
            assert_same(choice, expected[model], [runs[index] for _, runs in of_ranks])
        except AssertionError as error:
            failed.append(f"{name} on {layout}: {error}")
    assert not failed, "\n\n".join(failed)
