"""A worker without torch and collectives, light enough to be started 256 times: it makes steps and may be killed.

LIGHT is "RANK:STEP:ATTEMPT" of the one that kills itself.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from moe_cluster.contract import DONE, PREEMPTED
from moe_train.worker.process import Process

STEPS = 10


def work(process: Process) -> int:
    """Make all steps, or stop at one when asked to."""
    fault = tuple(map(int, os.environ["LIGHT"].split(":")))
    for step in range(1, STEPS + 1):
        if (process.rank, step, process.attempt) == fault:
            os.kill(os.getpid(), signal.SIGKILL)
        if process.stop_requested:
            return PREEMPTED
        process.beat(step)
        time.sleep(0.1)
    return DONE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--resume")
    options = parser.parse_args()
    with Process.of_worker(options.run_dir, os.environ) as this:
        sys.exit(work(this))
