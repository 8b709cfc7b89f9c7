"""A run of moe-train that is harmed on purpose, for the claim on stability.

    python tools/reproduction/poison.py nan run RECIPE ... --run-dir DIR

`nan`: in update 200 (counted from 0) one gradient is not a number. Whether parameters, moments and buffers are bit for
bit those from before the update is written to DIR/poison.json.
`ascent`: the gradients that the 20 batches from number 200 on give have the wrong sign, those of experts too, so the
loss climbs. It belongs to the batches and not to the updates: whoever goes back and then leaves these batches out is
rid of it.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST_BATCH, NUM_ASCENTS = 200, 20
RECORD = "poison.json"


def read_record(run_dir: Path) -> dict[str, Any]:
    """What a harmed run told beside its metrics; nothing for any other run."""
    path = run_dir / RECORD
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def main(arguments: list[str]) -> int:
    """Harms the training step, then runs `moe-train`."""
    from moe_train import cli
    from moe_train.step.training_step import TrainingStep

    kind, *command = arguments
    run_dir = Path(command[command.index("--run-dir") + 1])
    TrainingStep.update = {"nan": with_nan, "ascent": with_ascent}[kind](TrainingStep.update, run_dir)  # type: ignore[method-assign]
    return cli.main(command)


def with_nan(update: Callable, run_dir: Path) -> Callable:
    """Returns an `update` with one gradient that is not a number, which then records whether a bit has changed."""

    def poisoned(training_step, batches, number, *rest):
        if number != FIRST_BATCH:
            return update(training_step, batches, number, *rest)
        before = _digest(training_step.engine)
        parameter = next(iter(training_step.engine.parameters.values()))
        hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
        try:
            return update(training_step, batches, number, *rest)
        finally:
            hook.remove()
            (run_dir / RECORD).write_text(json.dumps({"bit_equal": _digest(training_step.engine) == before}))

    return poisoned


def with_ascent(update: Callable, run_dir: Path) -> Callable:
    """Returns an `update` that climbs at some batches."""

    def poisoned(training_step, batches, number, *rest):
        batch = int(batches[0].sequence_ids[0]) // training_step.recipe.data.global_batch
        if not FIRST_BATCH <= batch < FIRST_BATCH + NUM_ASCENTS:
            return update(training_step, batches, number, *rest)
        hook = training_step.engine.optimizer.register_step_pre_hook(_turn_gradients)
        try:
            return update(training_step, batches, number, *rest)
        finally:
            hook.remove()

    return poisoned


def _turn_gradients(optimizer, *_) -> None:
    """Change the sign of all that the update is made of.

    Not of what autograd hands to the parameters: gradients of experts do not come that way (moe/experts.py).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad.neg_()


def _digest(engine) -> str:
    """Of every bit that the engine would save."""
    from moe_train.checkpoint.layout import boxes_of

    digest = hashlib.sha256()
    for name, shard in boxes_of(dict(sorted(engine.state().items()))):
        digest.update(name.encode() + shard.data.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
