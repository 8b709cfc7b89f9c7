"""What a worker's heartbeat costs of its training steps: the processor time of the thread, and what a step itself does.

    python tools/bench_watch.py [--seconds 20] [--threads 1] [--sequences 32] [--markdown] [--json FILE]

recipes/switch/tiny.yaml makes steps (forward, backward, clipping, AdamW) on random tokens with a heartbeat beside them,
as in a run. The thread's own clock says what it used: looking at the main thread five times a second, and once a second
the file, the stop request and the clock of the stacks. `over_step` is that share of a second plus the share of a step
in which the main thread reports it.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from bench_monitor import random_batch
from measurement import Row, add_output_options, peak_memory_gib, report

from moe_cluster.output import run_main
from moe_train.config.load import load_recipe
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep
from moe_train.worker.process import Process


def main() -> None:
    """Measure and print; `--json` also writes the row."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="The heartbeat's share of a training step."
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of steps, with the heartbeat beside them"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=32, help="of 128 tokens, in a batch")
    add_output_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = [measure(options.seconds, options.sequences)]
    report([rows], options, lambda: f"{options.threads} threads; peak memory {peak_memory_gib():.1f} GiB")


def measure(seconds: float, sequences: int) -> Row:
    """One row: medians over the steps, and the thread's processor time over all of them."""
    recipe = load_recipe("switch/tiny", [f"data.global_batch={sequences}"])
    world = World(rank=0, size=1, local_rank=0, attempt=1, device=torch.device("cpu"))
    mesh = Mesh(world)
    training_step = TrainingStep.build(recipe, mesh)
    steps: list[float] = []
    beats: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder), attempt=1, rank=0) as process:
        process.progress.expect(recipe.job.hang_s, recipe.job.timeout_s)
        training_step.update([random_batch(recipe, 0)], 0, False)
        clock = _clock_of("heartbeat")
        began, used = time.perf_counter(), time.clock_gettime(clock)
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            training_step.update([random_batch(recipe, len(steps) + 1)], len(steps) + 1, False)
            middle = time.perf_counter()
            process.beat(len(steps) + 1)
            beats.append(time.perf_counter() - middle)
            steps.append(middle - start)
        share = (time.clock_gettime(clock) - used) / (time.perf_counter() - began)
    step_s, beat_s = statistics.median(steps), statistics.median(beats)
    return {
        "steps": len(steps),
        "step_ms": 1000 * step_s,
        "thread_ms_per_s": 1000 * share,
        "beat_us": 1e6 * beat_s,
        "over_step": share + beat_s / step_s,
    }


def _clock_of(name: str) -> int:
    """The processor clock of the thread called `name`."""
    found = next(thread for thread in threading.enumerate() if thread.name == name)
    assert found.ident is not None
    return time.pthread_getcpuclockid(found.ident)


if __name__ == "__main__":
    sys.exit(run_main(main))
