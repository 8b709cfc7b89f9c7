"""Implements `moe-train monitor`: shows what a run's experts did, as a table in the terminal or as one HTML page.

It reads only the run folder, so it works both during the run and afterwards.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from moe_train.arguments import Parser
from moe_train.errors import UsageError
from moe_train.monitor import balance
from moe_train.monitor.check import check
from moe_train.monitor.page.document import write_page
from moe_train.monitor.run import RunRecord, find_run, read_run

ALARMED = 3
"""Exit code of `--check` if there was a warning or worse."""
EPILOG = """\
examples:
  moe-train monitor runs/switch-tiny                      the last logging window, as a table
  moe-train monitor runs/switch-tiny --check              what is wrong, why, and what to do; exit code 3 if anything is
  moe-train monitor runs/switch-tiny --html experts.html  the whole run, as one self-contained page
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code. Raises MoETrainError for a run that cannot be read."""
    parser = Parser(
        "moe-train monitor",
        description="Show what the experts of a run did.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name below runs/")
    parser.add_argument(
        "--check", action="store_true", help="say what is wrong with the experts, if anything is"
    )
    parser.add_argument("--json", action="store_true", help="with --check: print it as JSON")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one self-contained HTML page")
    arguments = parser.parse_args(argv)
    run_dir = find_run(arguments.run)
    if arguments.json and not arguments.check:
        raise UsageError("--json: goes with --check; add that, or leave it out")
    run = read_run(run_dir)
    console = Console(highlight=False)
    if arguments.check:
        return _check(run, console, as_json=arguments.json)
    if arguments.html:
        write_page(run, arguments.html)
        console.print(f"wrote {arguments.html}", markup=False, soft_wrap=True)
    else:
        _print_summary(run, console)
        example = f"the whole run as a page: moe-train monitor {run_dir} --html experts.html"
        console.print(example, markup=False, soft_wrap=True)
    return 0


def _check(run: RunRecord, console: Console, *, as_json: bool) -> int:
    """Prints what the detectors find in the run; returns 3 if that is a warning or worse."""
    verdict = check(run.recipe, run.training)
    if as_json:
        print(json.dumps({"alarms": verdict.alarms, "not_measured": verdict.not_measured}))
        return ALARMED if verdict.is_bad else 0
    for alarm in verdict.alarms:
        over = f", over since step {alarm['over']:,}" if "over" in alarm else ""
        console.print(f"step {alarm['step']:,}: {alarm['severity']}, {alarm['detector']}{over}", markup=False)
        for line in (alarm["message"], *(f"why: {cause}" for cause in alarm["causes"]), *alarm["advice"]):
            console.print(f"    {line}", markup=False, soft_wrap=True)
    for line in verdict.not_measured:
        console.print(f"not measured: {line}", markup=False, soft_wrap=True)
    if not verdict.alarms:
        console.print(
            f"{run.name}: nothing is wrong in {len(run.training)} rows", markup=False, soft_wrap=True
        )
    return ALARMED if verdict.is_bad else 0


def _print_summary(run: RunRecord, console: Console) -> None:
    console.print(f"{run.name}: {run.state}", markup=False, soft_wrap=True)
    if not run.training:
        console.print("no training row has been written yet")
        return
    last = run.training[-1]
    fields = [f"step {last['step']:,} of {run.recipe.steps:,}", f"loss {_number(last['loss'], '.4f')}"]
    if run.validation:
        fields.append(f"validation loss {_number(run.validation[-1]['validation_loss'], '.4f')}")
    fields.append(
        f"lr {_number(last.get('lr'), '.3g')}, gradient norm {_number(last.get('grad_norm'), '.3g')}"
    )
    fields.append(f"{_number(last['tokens_per_second'], ',.0f')} tokens/s")
    if (memory := last.get("memory_bytes")) is not None:
        fields.append(f"{memory / 2**30:.2f} GiB")
    fields.append(f"attempts: {run.attempts}, resumes: {run.resumes}")
    console.print(", ".join(fields), soft_wrap=True)
    if run.layers:
        console.print(_expert_table(run))
    else:
        console.print("this model is dense: it has no experts to show")


def _expert_table(run: RunRecord) -> Table:
    # Without lines between them, ten columns fit into 80 characters.
    table = Table(
        "layer",
        box=None,
        padding=(0, 1, 0, 0),
        title=f"experts over the last steps before {run.training[-1]['step']:,}",
    )
    titles = (
        "CV",
        "by\nchance",
        "MaxVio",
        "entropy",
        "effective",
        "drop\nrate",
        "dead",
        "top\nprob.",
        "experts\nper token",
    )
    for title in titles:
        table.add_column(title, justify="right")
    moe = run.training[-1]["moe"]
    missing = [None] * len(run.layers)  # for a row that an older moe-train wrote
    for position, (name, load) in enumerate(zip(run.layers, moe["load"], strict=True)):
        table.add_row(
            name,
            _number(moe["cv"][position], ".3f"),
            _number(balance.figure(moe, "chance_cv", position), ".3f"),
            _number(moe["max_violation"][position], ".2f"),
            _number(moe["entropy"][position], ".3f"),
            f"{_number(balance.figure(moe, 'effective', position), '.1f')} of {len(load)}",
            _number(moe["drop_rate"][position], ".1%"),
            str(len(balance.figure(moe, "dead", position) or [])),
            _number(moe.get("router_top_probability", missing)[position], ".2f"),
            _number(moe.get("experts_per_token", missing)[position], ".2f"),
        )
    return table


def _number(value: float | None, style: str) -> str:
    """Formats a value of a row, where null means that it was not finite."""
    return "-" if value is None else format(value, style)
