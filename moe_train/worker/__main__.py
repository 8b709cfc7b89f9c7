"""Runs one worker, as a launcher starts it: `python -P -m moe_train.worker`, under `moe_cluster.contract`.

It is separate from `train.py` because importing torch takes seconds, in which a Process must already handle signals
and failed imports. Read `train.py` next.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_cluster.output import protect_output
from moe_train.arguments import Parser
from moe_train.data.in_thread import end_abandoned
from moe_train.imports import without_collecting
from moe_train.worker.process import Process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker that the environment describes; returns an exit code of the contract."""
    parser = Parser(prog="python -P -m moe_train.worker", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--resume", default="auto")
    arguments = parser.parse_args(argv)
    protect_output(is_result=False)
    try:
        with Process.of_worker(arguments.run_dir, os.environ) as process:
            from moe_train.config.load import load_recipe

            recipe = load_recipe(arguments.recipe)
            with without_collecting():
                from moe_train import train

            return train.run(recipe, arguments.run_dir, arguments.resume, process)
    except SystemExit as end:
        if isinstance(end.code, int):
            end_abandoned(end.code)
        raise


if __name__ == "__main__":
    sys.exit(main())
