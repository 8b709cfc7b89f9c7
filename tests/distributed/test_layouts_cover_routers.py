"""No kind of router is left out of the layout matrix: one that is new in the registry must be added to a list of it."""

from collections import defaultdict
from collections.abc import Iterator

import test_layouts
import test_layouts_routers
import test_layouts_stacks
from tiny_model import tiny_recipe

from moe_train.config.registry import OWN_KINDS


def variants() -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """The models that the lists compare with one process, and the layouts they do it on."""
    yield test_layouts.RANDOM, [layout for _, layout in test_layouts.EVERY_LAYOUT]
    shares = [(f"parallel.expert={expert}",) for _, expert in test_layouts.SHARES]
    yield from ((variant, shares) for variant in test_layouts.VARIANTS)
    yield from ((router, [layout]) for router, _, layout in test_layouts_routers.EVERY)
    layouts = [layout for _, layout in test_layouts_stacks.EVERY_LAYOUT]
    yield from ((variant, layouts) for variant in test_layouts_stacks.VARIANTS)


def test_every_kind_of_router_trains_with_its_experts_whole_and_shared_out_by_two_and_by_four():
    layouts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for variant, of_variant in variants():
        layouts[variant] |= {part for layout in of_variant for part in layout}
    shared: dict[str, set[str]] = defaultdict(set)
    for variant, parts in layouts.items():
        recipe = tiny_recipe(*variant)
        if recipe.moe.every > 0:
            shared[recipe.moe.router.kind] |= parts
    assert shared.keys() == OWN_KINDS["moe.router"].keys()
    for kind, parts in shared.items():
        missing = {f"parallel.expert={expert}" for expert in (1, 2, 4)} - parts
        assert not missing, f"{kind} is not compared with one process for {sorted(missing)}"
