"""What torch.compile gains for an update, and what it costs before the first, in one process.

    python tools/bench_compile.py [--rounds 5] [--layers 4] [--dropout 0.1] [--markdown] [--json FILE]

For a dense model and one with MoE layers, and each value of engine.compile: the CPU time of the first update beyond
that of a later one, compilers included, with an empty cache of generated code and with a full one; and the CPU time of
an update over that of `none`, the median of rounds in which all make their updates in turn.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from measurement import Row, add_output_options, interleave, median_ratio, report

from moe_cluster.output import run_main
from moe_train.config.kinds.data import BPEConfig
from moe_train.config.kinds.engine import COMPILED_PARTS, NativeEngineConfig
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, Recipe
from moe_train.data.batch import Batch
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep

MODELS = {"dense": 0, "MoE": 1}
"""Every how many blocks there is an MoE layer; 0: none."""
SETTLING = 3


def main() -> None:
    """Prints a line for each model and value of engine.compile."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    add_output_options(parser)
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other take CPU time too
    if options.first:
        model, value = options.first
        print(first(training_step(model, value, options)))
        return
    report(
        [[row for model in MODELS for row in measured(model, options)]],
        options,
        lambda: f"{options.layers} layers of width 256 with 8 experts, 1,024 tokens, 1 thread",
    )


def measured(model: str, options: argparse.Namespace) -> list[Row]:
    """Returns what each value of engine.compile costs and gains."""
    starts = {value: starting(model, value, options) for value in COMPILED_PARTS}
    steps = {value: training_step(model, value, options) for value in COMPILED_PARTS}
    for step in steps.values():
        for _ in range(SETTLING):
            seconds(step)
    updates: dict[str, Callable[[], float]] = {value: partial(seconds, step) for value, step in steps.items()}
    times = interleave(updates, budget_s=0, least=options.rounds)
    return [
        {
            "model": model,
            "compile": value,
            "start_s": starts[value][0],
            "cached_start_s": starts[value][1],
            "time": median_ratio(times[value], times["none"]),
        }
        for value in COMPILED_PARTS
    ]


def starting(model: str, value: str, options: argparse.Namespace) -> list[float]:
    """Returns the seconds before the first update in a new process, with an empty and with a full cache."""
    arguments = [f"--layers={options.layers}", f"--dropout={options.dropout}", "--first", model, value]
    with tempfile.TemporaryDirectory() as cache:
        # One thread of compilation runs in this process, where its time is seen.
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, __file__, *arguments]
        return [
            float(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)
            for _ in range(2)
        ]


def first(step: TrainingStep) -> float:
    """Returns the CPU time of the first update beyond that of the third, in seconds, children included."""
    before = sum(os.times()[:4])
    seconds(step)
    took = sum(os.times()[:4]) - before
    seconds(step)
    return took - seconds(step)


def training_step(model: str, value: str, options: argparse.Namespace) -> TrainingStep:
    """Returns the step of a decoder."""
    recipe = Recipe(
        model=ModelConfig(num_layers=options.layers, d_model=256, dropout=options.dropout),
        moe=MoEConfig(every=MODELS[model], num_experts=8),
        data=DataConfig(tokenizer=BPEConfig(vocab_size=1024), sequence_length=128, global_batch=8),
        engine=NativeEngineConfig(compile=value),  # type: ignore[arg-type]
    )
    return TrainingStep.build(recipe, Mesh(World(0, 1, 0, 1, torch.device("cpu"))))


def seconds(step: TrainingStep) -> float:
    """Makes an update from random tokens; returns its CPU time, which other processes of the machine change least."""
    data = step.recipe.data
    shape = (data.global_batch, data.sequence_length + 1)
    tokens = torch.randint(data.tokenizer.size, shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(shape[0]))
    began = time.process_time()
    step.update([batch], 1, False)
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(run_main(main))
