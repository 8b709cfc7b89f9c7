"""Prints a node's condition and its problems before work begins on it.

python -P -m moe_cluster.node.health --run-dir DIR [--json]           # this node
python -P -m moe_cluster.node.health --compare node1.json node2.json  # problems of all, and where they differ
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from moe_cluster.contract import DONE, FAILED
from moe_cluster.node.condition import read, report
from moe_cluster.node.health_rules import problems
from moe_cluster.output import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report of this node, or the problems of several; returns FAILED if one keeps a run from starting."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -P -m moe_cluster.node.health", description=__doc__
    )
    parser.add_argument("--run-dir", type=Path, default=Path())
    parser.add_argument("--json", action="store_true", help="print the report as one line of JSON")
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE", help="compare reports of --json, one per file"
    )
    options = parser.parse_args(argv)
    if options.json:
        print(json.dumps(asdict(report(options.run_dir))))
        return DONE
    reports = [read(path.read_text()) for path in options.compare or ()] or [report(options.run_dir)]
    all_problems = problems(reports)
    for problem in all_problems:
        print(f"{'error' if problem.is_fatal else 'warning'}: {problem}")
    if not all_problems:
        print(f"{', '.join(one.host for one in reports)}: no problems found")
    return FAILED if any(problem.is_fatal for problem in all_problems) else DONE


if __name__ == "__main__":
    sys.exit(run_main(main))
