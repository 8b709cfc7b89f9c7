"""Claims of the papers, tried at a size that two cores manage: which hold, with how much certainty, at what cost.

    python tools/reproduce.py list                the claims and what has been measured
    python tools/reproduce.py plan CLAIM          what would be run, its cost, and the rule of the verdict
    python tools/reproduce.py CLAIM [--jobs 2]    measure what is missing, then print the verdict
    python tools/reproduce.py report              write docs/reproductions.md from what has been measured

CLAIM is a name or a number of `list`, or `all`. A stopped reproduction goes on where it was; arms that several claims
share are measured once. `--rehearse` makes every run 4 steps long and throws the results away.
"""

import argparse
import logging
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reproduction.flops import account, planned
from reproduction.plan import FLOPS_TOLERANCE, SEEDS, Arm, Claim, Plan, read_plan
from reproduction.report import collect, document
from reproduction.result import load
from reproduction.runs import ROOT, Runner

from moe_cluster.output import OutputError, finish_output, protect_output
from moe_train.config.resolve import spec_of
from moe_train.errors import MoETrainError
from moe_train.model.count import count

DOCS = ROOT / "docs"
RESULTS = ROOT / "tools" / "reproduction" / "results"
REHEARSAL_STEPS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Be the command; returns 0, or 2 with one message for what cannot be done, 1 for a run that failed."""
    options = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    protect_output(
        is_result=options.what in ("list", "plan")
    )  # a measurement of hours goes on without its reader
    try:
        _act(options)
        return finish_output(0)
    except (MoETrainError, OutputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader has gone (`| head`)
        return 130
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="tools/reproduce.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", help="list, plan, report, or a claim to measure")
    parser.add_argument("claim", nargs="?", default="all", help="for plan (default: all)")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, 65), default=2, metavar="N", help="runs at a time (default: 2)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: tools/reproduction/results"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="4 steps a run, one seed, results thrown away"
    )
    parser.add_argument("--no-charts", action="store_true", help="for report: keep the charts that there are")
    return parser


def _act(options: argparse.Namespace) -> None:
    plan = read_plan()
    if options.what == "list":
        _list(plan, options.results)
    elif options.what == "plan":
        _show_plan(plan, _claims(plan, options.claim), options.results)
    elif options.what == "report":
        _report(plan, options.results, draw_charts=not options.no_charts)
    elif options.rehearse:
        _rehearse(plan, _claims(plan, options.what), options.jobs)
    else:
        _measure(plan, _claims(plan, options.what), options.results, options.jobs)


def _claims(plan: Plan, name: str) -> tuple[Claim, ...]:
    return tuple(plan.claims.values()) if name == "all" else (plan.claim(name),)


def _list(plan: Plan, results: Path) -> None:
    for claim in plan.claims.values():
        found = collect(plan, claim, results)
        made, all_runs = len(found.all_results), len(claim.arms) * len(SEEDS)
        print(f"{claim.number:>3}  {claim.name:<24} {made:>2} of {all_runs:>2} runs  {found.verdict}")
        print(f"     {claim.title}")


def _show_plan(plan: Plan, claims: tuple[Claim, ...], results: Path) -> None:
    arms, total = plan.arms_of(claims), 0.0
    print(f"{'arm':<30} {'seeds to run':<14} {'MFLOPs/token':>12} {'parameters':>11} {'CPU min/run':>12}")
    for arm in arms:
        missing = [seed for seed in SEEDS if load(results, arm, seed) is None]
        recipe, seconds = arm.recipe(0), _seconds(arm, results)
        total += seconds * len(missing)
        seeds = " ".join(map(str, missing)) or "none"
        flops, parameters = account(recipe).per_token / 1e6, count(spec_of(recipe)).total_parameters
        print(f"{arm.name:<30} {seeds:<14} {flops:>12.3f} {parameters:>11,} {seconds / 60:>12.1f}")
    print(f"to run: {total / 60:.0f} minutes of CPU, {total / 120:.0f} minutes on two cores\n")
    for claim in claims:
        print(f"{claim.number}. {claim.title}: holds here if, over seeds {', '.join(map(str, SEEDS))},")
        print("\n".join(f"   - {item}" for item in claim.expect if item.decides))
        if spread := _flops_spread(plan, claim):
            print(f"   FLOPs of a run differ by {spread:.2%} (at most {FLOPS_TOLERANCE:.0%})")


def _measure(plan: Plan, claims: tuple[Claim, ...], results: Path, jobs: int) -> None:
    runner = Runner(results, tell=_tell)
    tasks = runner.missing(plan.arms_of(claims), SEEDS)
    print(f"{len(tasks)} runs to make", flush=True)
    runner.measure(tasks, jobs)
    for claim in claims:
        found = collect(plan, claim, results)
        print(f"{claim.number}. {claim.title}: {found.verdict}")
        for item, judgement in found.judgements:
            figures = f"{judgement.mean:+.4f}, e = {judgement.standard_error:.4f}"
            print(f"   - {item.role}: {item}: {judgement.outcome} ({figures})")


def _tell(line: str) -> None:
    """A line a run, at once, also into a file."""
    print(line, flush=True)


def _rehearse(plan: Plan, claims: tuple[Claim, ...], jobs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        runner = Runner(Path(folder), tell=_tell, rehearsal_steps=REHEARSAL_STEPS)
        runner.measure(runner.missing(plan.arms_of(claims), SEEDS[:1]), jobs)


def _report(plan: Plan, results: Path, *, draw_charts: bool) -> None:
    found = [collect(plan, claim, results) for claim in plan.claims.values()]
    charts = {}
    for item in found:
        measured = {arm: of_arm for arm, of_arm in item.results.items() if of_arm}
        path = DOCS / "reproductions" / f"{item.claim.name}.svg"
        if measured and draw_charts:
            from reproduction.charts import draw

            draw(path, measured, item.claim.over_flops)
        if measured and path.is_file():
            charts[item.claim.name] = str(path.relative_to(DOCS))
    page = DOCS / "reproductions.md"
    page.write_text(document(plan, found, charts))
    print(f"wrote {page}")


def _seconds(arm: Arm, results: Path) -> float:
    """CPU time of one run: as measured, or else as estimated."""
    measured = [result.cpu_seconds for seed in SEEDS if (result := load(results, arm, seed)) is not None]
    return statistics.fmean(measured) if measured else arm.seconds


def _flops_spread(plan: Plan, claim: Claim) -> float:
    """By how much the FLOPs of the runs that must agree differ, as a share."""
    flops = [planned(plan.arms[name].recipe(0)) for name in claim.equal_flops]
    return max(flops) / min(flops) - 1 if flops else 0.0


if __name__ == "__main__":
    sys.exit(main())
