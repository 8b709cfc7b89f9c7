"""Bytes that recomputation saves, and the time that it costs, in one process.

    python tools/bench_recompute.py [--rounds 5] [--layers 8] [--markdown] [--json FILE]

For each value of engine.recompute: the bytes of tensors that a forward pass leaves for the backward pass, the most
there are at once in the two, both beside parameters and gradients, and the CPU time of a whole update over that of
`none`, the median of rounds in which all make their updates in turn. Bytes are those of live storages, which a dispatch
mode sees, not the process's memory.
"""

import argparse
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from measurement import Row, add_output_options, interleave, median_ratio, report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from moe_cluster.output import run_main
from moe_train.config.kinds.data import BPEConfig
from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.schema import DataConfig, ModelConfig, MoEConfig, Recipe
from moe_train.data.batch import Batch
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.step.training_step import TrainingStep

PARTS = ("none", "experts", "attention", "block")
MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still there, beside those of `known`."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.now = self.peak = 0
        for tensor in known:
            self._add(tensor.untyped_storage())
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def main() -> None:
    """Prints a line for each value of engine.recompute."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    add_output_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other take CPU time too
    report(
        [measured(options.layers, options.rounds)],
        options,
        lambda: f"{options.layers} layers of width 256 with 8 experts, 1,024 tokens, 1 thread",
    )


def measured(layers: int, rounds: int) -> list[Row]:
    """Returns what each part kept, needed at most and took."""
    steps = {parts: training_step(parts, layers) for parts in PARTS}
    batch = text(next(iter(steps.values())).recipe)
    sizes = {parts: live_bytes(step, batch) for parts, step in steps.items()}
    updates: dict[str, Callable[[], float]] = {
        parts: partial(seconds, step, batch) for parts, step in steps.items()
    }
    times = interleave(updates, budget_s=0, least=rounds)
    return [
        {
            "recompute": parts,
            "kept_mib": sizes[parts][0] / MIB,
            "peak_mib": sizes[parts][1] / MIB,
            "time": median_ratio(times[parts], times["none"]),
        }
        for parts in PARTS
    ]


def training_step(parts: str, layers: int) -> TrainingStep:
    """Returns the step of a decoder of MoE blocks."""
    recipe = Recipe(
        model=ModelConfig(num_layers=layers, d_model=256),
        moe=MoEConfig(every=1, num_experts=8),
        data=DataConfig(tokenizer=BPEConfig(vocab_size=1024), sequence_length=128, global_batch=8),
        engine=NativeEngineConfig(recompute=parts),  # type: ignore[arg-type]
    )
    return TrainingStep.build(recipe, Mesh(World(0, 1, 0, 1, torch.device("cpu"))))


def text(recipe: Recipe) -> Batch:
    """Returns random tokens."""
    shape = (recipe.data.global_batch, recipe.data.sequence_length + 1)
    tokens = torch.randint(recipe.data.tokenizer.size, shape, generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(shape[0]))


def live_bytes(step: TrainingStep, batch: Batch) -> tuple[int, int]:
    """Returns the bytes between the passes, and the most in either."""
    step.update([batch], 0, False)  # gradients have their storage from here on
    parameters = list(step.engine.model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    with LiveBytes([*parameters, *gradients]) as live:
        loss = step.objective(step.forward(batch, 1).logits, batch)
        kept = live.now
        step.engine.backward(loss, is_last=True)
    return kept, live.peak


def seconds(step: TrainingStep, batch: Batch) -> float:
    """Makes an update; returns its CPU time, which other processes of the machine change least."""
    began = time.process_time()
    step.update([batch], 1, False)
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(run_main(main))
