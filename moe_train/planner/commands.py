"""Runs `moe-train plan`: traces an update on any number of workers, and prints what it costs each of them."""

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

from moe_cluster.contract import DONE
from moe_train.arguments import Parser, add_overrides, at_least_one, parse_with_overrides, positive
from moe_train.config.check import require_sound
from moe_train.config.kinds.engine import OwnEngineConfig
from moe_train.config.layout import plan_of
from moe_train.config.load import load_recipe
from moe_train.config.plan import ParallelPlan
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError

EPILOG = """\
examples:
  moe-train plan recipes/artetxe/1.1t.yaml --world 512
  moe-train plan recipes/glam/64b_64e.yaml --world 512 --imbalance 1.5 --json

The real model, both meshes and the whole update are traced on fake tensors and a fake process group: nothing is
computed or sent. Memory is that of live tensors, without what an allocator, NCCL or CUDA add. Dispatchers that
share memory are traced as all_to_all.
"""


def main(arguments: Sequence[str]) -> int:
    """Print the plan. Raises RecipeError, LayoutError or UsageError for what cannot run or cannot be traced."""
    options = parse_with_overrides(_parser(), arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    require_sound(recipe, options.world)
    _require_traceable(recipe)
    _require_possible(options.imbalance, plan_of(recipe.parallel, options.world))
    planned = _traced(recipe, options.world, options.imbalance)
    print(json.dumps(planned, indent=1) if options.json else "\n".join(_lines(planned)))
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "moe-train plan",
        description="Say what an update costs each worker: FLOPs, collectives, bytes held and peak memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a recipe that comes with moe-train")
    add_overrides(parser, "override a key of the recipe, e.g. parallel.expert=64")
    parser.add_argument("--world", type=positive, required=True, metavar="N", help="number of workers")
    parser.add_argument(
        "--imbalance",
        type=at_least_one,
        default=1.0,
        metavar="X",
        help="rows that the busiest worker receives, as a multiple of the mean (default: 1, an even load)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _require_traceable(recipe: Recipe) -> None:
    if not isinstance(recipe.engine, OwnEngineConfig):
        raise UsageError(
            f"engine.kind={recipe.engine.kind}: plan traces moe-train's own engines only; set engine.kind=native or "
            "deepspeed"
        )


def _require_possible(imbalance: float, plan: ParallelPlan) -> None:
    """Raises UsageError for more rows on the busiest worker than there are."""
    if imbalance > plan.expert:
        reach = "every worker has all experts" if plan.expert == 1 else "all rows go to one worker then"
        raise UsageError(
            f"--imbalance {imbalance:g}: must be at most parallel.expert={plan.expert}, as {reach}; lower it, or raise "
            "parallel.expert"
        )


def _traced(recipe: Recipe, workers: int, imbalance: float) -> dict[str, Any]:
    """Returns the trace as plain data, for JSON."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    from moe_train.planner.trace import trace

    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(
            action="ignore", category=FutureWarning
        ):  # DeepSpeed uses old names of torch
            planned = trace(recipe, workers, imbalance)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UsageError(
            f"moe.router.kind={recipe.moe.router.kind}: an update needs values of tensors ({error.func}), which a "
            "trace does not have; moe-train show says what a worker holds"
        ) from None
    return {
        "name": recipe.name,
        "workers": workers,
        "degrees": planned.degrees,
        "imbalance": imbalance,
        "microbatches": planned.microbatches,
        "sequences_per_microbatch": planned.sequences,
        "flops": planned.flops,
        "parameter_bytes": planned.parameter_bytes,
        "gradient_bytes": planned.gradient_bytes,
        "optimizer_bytes": planned.optimizer_bytes,
        "peak_bytes": planned.peak_bytes,
        "collectives": planned.collectives.rows(),
        "collectives_at_start": planned.start.rows(),
    }


def _lines(planned: dict[str, Any]) -> list[str]:
    from moe_train.layout.units import amount, counted

    batches = counted(planned["microbatches"], "microbatch", "microbatches")
    sequences = counted(planned["sequences_per_microbatch"], "sequence")
    return [
        f"{planned['name']} on {counted(planned['workers'], 'worker')}: {planned['degrees']}",
        "",
        f"one update of rank 0, {batches} of {sequences}, rows {planned['imbalance']:g} times the mean",
        f"  {'FLOPs':<34}{planned['flops'] / 1e12:>12,.3g} TFLOP",
        "",
        "memory of live tensors",
        *(
            f"  {title:<34}{amount(planned[key]):>18}"
            for title, key in (
                ("parameters", "parameter_bytes"),
                ("gradients", "gradient_bytes"),
                ("optimizer state", "optimizer_bytes"),
                ("most at once", "peak_bytes"),
            )
        ),
        "",
        *_table("collectives of an update", planned["collectives"]),
        *_table("collectives before the first one", planned["collectives_at_start"]),
    ]


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    from moe_train.layout.units import amount

    if not rows:
        return [f"{title}: none"]
    return [
        title,
        *(
            f"  {row['kind']:<16}{row['axis']:<18}{row['number']:>8,} x{amount(row['bytes'] / row['number']):>12}"
            f"{amount(row['bytes']):>14}"
            for row in rows
        ),
    ]
