"""Copies that two workers hold: equal in sound runs, and named when one worker changes its own."""

from pathlib import Path

from gloo_workers import run_workers
from poisoned_run import StopAt, make

from moe_train.checkpoint.verify import verify
from moe_train.errors import TrainingError
from moe_train.parallel.world import World

SHORT = ("steps=4", "model.num_layers=1", "log_every=4", "validate_every=0", "checkpoint.every=0")
DEEPSEEK = ("parallel.expert=2", "moe.router.kind=deepseek", "moe.router.k=1", "moe.capacity_factor=null")
TENSOR = ("parallel.tensor=2", "parallel.expert=2", "steps=20")
ADAFACTOR = ("optim.kind=adafactor", "optim.factor_from=8", "optim.beta1=0.9")
BIAS = "model.layers.0.feedforward.router.bias has other values on rank 0 than on rank 1"


class Harm(StopAt):
    """Changes the router's bias of one worker after update 2."""

    def __init__(self, bias, is_harmed: bool) -> None:
        super().__init__(None)
        self.bias, self.is_harmed = bias, is_harmed

    def beat(self, step: int) -> None:
        if step == 2 and self.is_harmed:
            self.bias[3] += 1


def run(world: World, folder: Path, *overrides: str, harmed: bool) -> str:
    """The error of a run, or nothing."""
    trainer, _ = make(world, folder, (*SHORT, *overrides))
    if harmed:
        router = trainer.training_step.engine.model.layers[0].feedforward.router
        trainer.watch = Harm(router.bias, world.rank == 1)
    try:
        trainer.fit()
    except TrainingError as error:
        return str(error)
    return ""


def all_runs(world: World, folder: Path) -> list[str]:
    return [
        run(world, folder / "deepseek", "parallel.check_every=1", *DEEPSEEK, harmed=False),
        run(world, folder / "adafactor", "parallel.check_every=1", *ADAFACTOR, harmed=False),
        run(world, folder / "tensor", "parallel.check_every=1", *TENSOR, harmed=False),
        run(world, folder / "harmed", "parallel.check_every=3", *DEEPSEEK, harmed=True),
        run(world, folder / "at_the_save", "parallel.check_every=100", *DEEPSEEK, harmed=True),
        run(world, folder / "recorded", "parallel.check_every=0", *DEEPSEEK, harmed=True),
    ]


def test_copies_are_compared_in_training_and_at_a_save(tmp_path):
    """Case 3: routers of tensor ranks drift apart (pytorch/torchtitan#2387): equal after each of 20 updates here."""
    of_ranks = run_workers(2, all_runs, tmp_path)
    assert of_ranks[0] == of_ranks[1]
    deepseek, adafactor, tensor, harmed, at_the_save, recorded = of_ranks[0]
    assert (deepseek, adafactor, tensor, recorded) == ("", "", "", "")
    assert harmed.startswith(
        f"parallel.check_every=3: workers must hold equal copies, but after step 3 {BIAS}; "
    )
    assert at_the_save.startswith(
        f"parallel.check_every=100: workers must hold equal copies, but after step 4 {BIAS}; "
    )
    assert not (tmp_path / "at_the_save/checkpoints/step_00000004").exists()
    assert verify(tmp_path / "deepseek/checkpoints/step_00000004") == []
    (finding,) = verify(tmp_path / "recorded/checkpoints/step_00000004")
    assert finding.endswith(f"step_00000004: when it was saved, {BIAS}")
