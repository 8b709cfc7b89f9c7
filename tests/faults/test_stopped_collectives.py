"""A rank that is stopped in a collective, of every kind that a training step has: the ranks that wait say in which."""

import re
from pathlib import Path

import pytest
from stopped_rank import HANG_S, Where, watched_hang

TENSOR = "parallel.tensor=2"
SEQUENCE = (TENSOR, "parallel.sequence=true")
EXPERT = "parallel.expert=2"
ALL_TO_ALL = (EXPERT, "moe.dispatch.kind=all_to_all")
DEEPSPEED = ("engine.kind=deepspeed",)
SMALL_BUCKETS = "engine.config={zero_optimization: {reduce_bucket_size: 1000}}"
SCATTER = "(reduce_scatter|all_reduce)"  # gloo's reduce_scatter is an all_reduce
ROWS = r"at moe/dispatch/all_to_all\.py:\d+ \w+"
OVERLAPPED = r"all_to_all over \S*expert\S* at moe_kernels/all_to_all\.py:\d+ arrive"

CASES = {
    "tensor sum": (
        (TENSOR,),
        Where("all_reduce", "model/attention.py"),
        r"all_reduce over tensor\S* at model/stack\.py:\d+ _attend of layers\.0 forward",
    ),
    "tensor sum, backward": (
        (TENSOR,),
        Where("all_reduce", "engines/native.py", is_backward=True),
        r"all_reduce over tensor\S* at engines/native\.py:\d+ backward of scores backward",
    ),
    "tensor gather": (
        SEQUENCE,
        Where("all_gather", "model/stack.py"),
        r"all_gather\w* over tensor\S* at model/stack\.py:\d+ _attend of layers\.0 forward",
    ),
    "gather around experts": (
        (TENSOR,),
        Where("allgather", "parallel/share.py"),
        r"all_gather\w* over tensor\S* at parallel/share\.py:\d+ _all of layers\.0 forward",
    ),
    "gather around experts, backward": (
        (TENSOR,),
        Where("allgather", "parallel/share.py", is_backward=True),
        r"all_gather\w* over tensor\S* at parallel/share\.py:\d+ _all of layers\.1 backward",
    ),
    "dispatch": (
        ALL_TO_ALL,
        Where("alltoall", "dispatch/all_to_all.py"),
        rf"all_to_all over \S*expert\S* {ROWS} of layers\.0 forward",
    ),
    "dispatch, backward": (
        ALL_TO_ALL,
        Where("alltoall", "all_to_all.py", is_backward=True),
        r"all_to_all over \S*expert\S* at moe_kernels/all_to_all\.py:\d+ \w+ of layers\.1 backward",
    ),
    "overlapped dispatch": (
        (EXPERT, "engine.overlap=halves"),
        Where("alltoall", "dispatch/turns.py"),
        rf"{OVERLAPPED} of layers\.0 forward",
    ),
    "overlapped dispatch, backward": (
        (EXPERT, "engine.overlap=halves"),
        Where("alltoall", "dispatch/turns.py", is_backward=True),
        rf"{OVERLAPPED} of layers\.1 backward",
    ),
    "one-sided dispatch": (
        (EXPERT, "moe.dispatch.kind=one_sided"),
        Where("", "moe_kernels/exchange.py"),
        r"moe_kernels/\w+\.py:\d+ \w+ of layers\.0 forward",
    ),
    "expert reduction": (
        (),
        Where("reduce_scatter", "_fsdp", is_backward=True),
        rf"{SCATTER} over \S*replica\S* at engines/native\.py:\d+ backward of layers\.1 backward",
    ),
    "FSDP gather": (
        (EXPERT,),
        Where("allgather", "_fsdp"),
        r"all_gather\w* over data\S* at \S+ \w+ of \w+ forward",
    ),
    "FSDP reduction": (
        (EXPERT,),
        Where("reduce_scatter", "_fsdp", is_backward=True),
        rf"{SCATTER} over data\S* at engines/native\.py:\d+ backward of layers\.1 backward",
    ),
    "ZeRO 1 bucket": (
        (*DEEPSPEED, "engine.stage=1", EXPERT),
        Where("reduce", "deepspeed/runtime"),
        r"\w*reduce over \S*data\S* at engines/deepspeed\.py:\d+ backward$",
    ),
    "ZeRO 2 bucket": (
        (*DEEPSPEED, "engine.stage=2", EXPERT, SMALL_BUCKETS),
        Where("reduce", "deepspeed/runtime", is_backward=True),
        r"\w*reduce over \S*data\S* at engines/deepspeed\.py:\d+ backward of (scores|layers\.1) backward",
    ),
    "tensor sum, DeepSpeed": (
        (*DEEPSPEED, TENSOR),
        Where("allreduce", "megatron/core"),
        r"all_reduce over \S*tensor\S* at engines/\w+\.py:\d+ forward of embedding forward",
    ),
    "tensor sum, DeepSpeed, backward": (
        (*DEEPSPEED, TENSOR),
        Where("all_reduce", "engines/deepspeed", is_backward=True),
        r"all_reduce over \S*tensor\S* at engines/deepspeed\.py:\d+ backward of scores backward",
    ),
    "loss over cut logits": (
        (TENSOR,),
        Where("allreduce", "parallel/cut_softmax.py"),
        r"all_?reduce over tensor\S* at parallel/cut_softmax\.py:\d+ _largest of scores forward",
    ),
    "norm": (
        (EXPERT,),
        Where("allreduce", "optim/norm.py"),
        r"all_?reduce over \S* at optim/norm\.py:\d+ norm_and_sums$",
    ),
}


REPRESENTATIVE = "gather around experts, backward"


@pytest.mark.faults
@pytest.mark.parametrize(
    "case", [pytest.param(case, id="representative" if case == REPRESENTATIVE else case) for case in CASES]
)
def test_who_waits_says_in_which_collective_of_which_layer(case: str, tmp_path: Path) -> None:
    overrides, where, expected = CASES[case]
    outcome = watched_hang(tmp_path, 2, 1, where, overrides)
    (suspect,), (wait,) = outcome.hang.suspects, outcome.hang.waiting
    assert (suspect.rank, wait.ranks) == (1, (0,))
    assert "is stopped (SIGSTOP)" in suspect.what
    assert re.search(f"^{expected}", wait.operation), wait.operation
    assert outcome.seconds < HANG_S + 10
    assert outcome.num_ended == 1
