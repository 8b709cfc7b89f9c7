"""Where a thread is, told by frames of functions that stand in modules of given names."""

import gc
import sys
import threading
from types import FrameType

import pytest

from moe_train.worker.whereabouts import NOWHERE, Place, Sampler, direction_of, main_thread_place, place_of


def stack(*modules: str) -> FrameType:
    """The innermost frame of functions of these modules, the last called by the one before it, and so on."""
    call = sys._getframe
    for module in reversed(modules):
        space = {"__name__": module, "call": call}
        exec("def function():\n    return call()", space)
        call = space["function"]
    return call()


@pytest.mark.parametrize(
    ("modules", "where", "is_waiting"),
    [
        (["moe_train.train", "moe_train.moe.layers.layer"], "moe/layers/layer.py:2 function", False),
        (["moe_train.train", "torch.nn.functional"], "train.py:2 function", False),
        (
            ["moe_train.moe.layers.layer", "torch.distributed.distributed_c10d"],
            "moe/layers/layer.py:2 function",
            True,
        ),
        (
            ["moe_train.moe.layers.layer", "torch.distributed.x", "numpy"],
            "moe/layers/layer.py:2 function",
            True,
        ),
        # FSDP2 calls the model from inside torch.distributed: what it calls there does not wait.
        (["torch.distributed.fsdp", "moe_train.model.stack"], "model/stack.py:2 function", False),
        (["moe_train.moe.layers.layer", "moe_kernels.exchange"], "moe_kernels/exchange.py:2 function", True),
        (["moe_kernels.endpoint", "moe_kernels.launch"], "moe_kernels/endpoint.py:2 function", True),
        (["moe_kernels.ops.router", "moe_kernels.launch"], "moe_kernels/ops/router.py:2 function", False),
        (["moe_train.trainer", "moe_train.parallel.world"], "parallel/world.py:2 function", True),
        (
            ["moe_train.parallel.cut_softmax", "moe_train.parallel.axis", "torch.distributed.x"],
            "parallel/cut_softmax.py:2 function",
            True,
        ),
        (["moe_train.data.prepare", "moe_training"], "data/prepare.py:2 function", False),
    ],
)
def test_the_innermost_line_of_our_own_is_named_and_whether_it_waits(
    modules: list[str], where: str, is_waiting: bool
) -> None:
    assert place_of(stack(*modules)) == Place(where, is_waiting)


@pytest.mark.parametrize(
    ("modules", "direction"),
    [
        (["moe_train.step.losses", "moe_train.model.stack", "torch.distributed.x"], "forward"),
        (["moe_train.step.losses", "moe_train.objectives.language", "moe_train.parallel.axis"], "forward"),
        (["moe_train.engines.native", "torch.autograd.graph", "torch.distributed.x"], "backward"),
        # A block that is computed again.
        (["moe_train.engines.native", "torch.autograd.graph", "moe_train.model.stack"], "backward"),
        (["moe_train.engines.native", "moe_train.optim.norm", "moe_train.parallel.world"], ""),
    ],
)
def test_a_pass_through_the_model_has_a_direction(modules: list[str], direction: str) -> None:
    assert direction_of(stack(*modules)) == direction


def test_a_thread_that_runs_nothing_of_ours_is_nowhere() -> None:
    seen: list[Place] = []
    thread = threading.Thread(target=lambda: seen.append(place_of(stack("json", "torch.distributed.x"))))
    thread.start()
    thread.join()
    assert seen == [NOWHERE]
    assert place_of(None) == NOWHERE


def test_nothing_is_collected_while_frames_are_read() -> None:
    """What a collection runs may let the main thread go on, whose frame is then another object, or hang both."""
    collected_in: list[str] = []

    def note(_phase: str, _info: object) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            collected_in.append(frame.f_code.co_name)
            frame = frame.f_back

    def look() -> None:
        for _ in range(100):
            assert main_thread_place() == NOWHERE

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(note)
    assert "look" in collected_in, "between two looks there is much to collect"
    assert "place_of" not in collected_in
    assert gc.isenabled()


def test_importing_torch_distributed_is_no_wait() -> None:
    seen: list[FrameType] = []
    space = {"__name__": "torch.distributed.x", "seen": seen, "sys": sys}
    importer: dict[str, object] = {"__name__": "moe_train.train", "code": "seen.append(sys._getframe())"}
    exec("def load(space):\n    exec(compile(code, 'x', 'exec'), space)", importer)
    importer["load"](space)  # type: ignore[operator]
    assert place_of(seen[0]) == Place("train.py:2 load", is_waiting=False)


def sample_while_waiting(sampler: Sampler, *times: float) -> None:
    """Have another thread sample at these times, while this one waits in a place that counts as waiting."""
    thread = threading.Thread(target=lambda: [sampler.sample(now) for now in times])
    space = {"__name__": "moe_train.parallel.world", "thread": thread}
    exec("def wait():\n    thread.start()\n    thread.join()", space)
    space["wait"]()  # type: ignore[operator]


def test_the_share_of_waiting_is_that_of_the_last_seconds() -> None:
    sampler = Sampler(every_s=1, window_s=4)
    assert sampler.waiting == 0.0
    sample_while_waiting(sampler, 1, 2, 3, 4)
    assert sampler.waiting == 1.0
    assert sampler.place.where.endswith(" wait")
    for now in (5, 6, 7):
        sampler.sample(now)
    assert sampler.waiting == 0.4  # of 3, 4, 5, 6 and 7


def test_a_process_that_was_stopped_did_not_wait_meanwhile() -> None:
    sampler = Sampler(every_s=1, window_s=100)
    sample_while_waiting(sampler, 0, 10)
    assert sampler.waiting == pytest.approx(2 / 11)
