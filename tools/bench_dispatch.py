"""The one-sided exchange against gloo's all-to-all, between processes of this machine.

    python tools/bench_dispatch.py [--quick] [--ranks 2 4] [--rounds 7] [--markdown] [--json FILE]

`cpu_over_gloo` is the CPU time of dispatch and combine, forward and backward, of moe_train's `one_sided` dispatcher
over that of the same written with torch's own operations around `all_to_all_single` (plain_exchange.py), summed over
the ranks: wall time would flatter us on a busy machine, because gloo's threads have to be scheduled.
`cpu_over_all_to_all` is over moe_train's own gloo dispatcher, which makes fewer passes over the rows, and
`copies_over_gloo` says what is possible: four plain copies of the rows, one for each of the four movements, over the
same gloo path as in `cpu_over_gloo`. `bandwidth_over_memcpy` is that of a forward dispatch over that of a plain
memcpy of as many bytes, by as many threads (one a rank), into the same shared segments; the slowest rank counts.
T tokens of a rank, K choices, D width, E experts in all.
"""

import argparse
import ctypes
import multiprocessing
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from measurement import Row, add_output_options, interleave, median_ratio, peak_memory_gib, report
from plain_exchange import PlainExchange
from torch import Tensor

from moe_cluster.output import run_main
from moe_train.config.kinds.dispatch import AllToAllDispatchConfig, OneSidedDispatchConfig
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.one_sided import OneSidedDispatcher, join
from moe_train.moe.routing import Routing
from moe_train.parallel.host_memory import keep_freed_memory

NUM_EXPERTS = 8
MOST_BYTES = 256 << 20
"""Of the rows that all ranks send: larger cases are left out."""
CPU, BY_WALL = ("one_sided", "all_to_all", "gloo", "copies"), ("dispatch", "memcpy")
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Case:
    """One line of the table; the sizes are those of one rank."""

    tokens: int
    hidden: int
    dtype: torch.dtype
    top_k: int

    @property
    def sent_bytes(self) -> int:
        """Bytes of the rows that a rank sends."""
        return self.tokens * self.top_k * self.hidden * self.dtype.itemsize


CASES = [
    Case(4096, 512, torch.float32, 1),
    Case(4096, 512, torch.bfloat16, 2),
    Case(8192, 1024, torch.float32, 1),
    Case(8192, 1024, torch.bfloat16, 2),
    Case(16384, 1024, torch.bfloat16, 1),
    Case(16384, 512, torch.float32, 2),
    Case(8192, 2048, torch.bfloat16, 2),
    Case(8192, 2048, torch.float32, 1),
    Case(16384, 1024, torch.float32, 1),
]


def main() -> None:
    """Measure every case with every number of ranks and print the table."""
    options = _options()
    report(_tables(options), options, lambda: f"peak memory {peak_memory_gib():.1f} GiB a rank")


def _tables(options: argparse.Namespace) -> Iterator[list[Row]]:
    for num_ranks in options.ranks:
        cases = [Case(256, 64, torch.float32, 2)] if options.quick else list(_cases(num_ranks))
        yield _rows(num_ranks, cases, measure(num_ranks, cases, options.rounds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="The one-sided exchange against gloo's all-to-all."
    )
    parser.add_argument("--quick", action="store_true", help="one tiny case: that it works, not how fast")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="processes, 1 thread each")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count; the median is shown")
    add_output_options(parser)
    return parser.parse_args()


def _cases(num_ranks: int) -> Iterator[Case]:
    return (case for case in CASES if case.sent_bytes * num_ranks <= MOST_BYTES)


def measure(num_ranks: int, cases: list[Case], rounds: int) -> list[list[Seconds]]:
    """The times of every case, by rank: one start of the processes for all cases."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, num_ranks, folder, cases, rounds, results), daemon=True)
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        by_rank = dict(_result(results, ranks) for _ in ranks)
        for process in ranks:
            process.join()
    return [[by_rank[rank][index] for rank in range(num_ranks)] for index in range(len(cases))]


def _result(results: Any, ranks: list[Any]) -> tuple[int, list[Seconds]]:
    """What the next rank to finish has measured."""
    while True:
        try:
            return results.get(timeout=1)
        except queue.Empty:
            lost = [rank for rank, process in enumerate(ranks) if process.exitcode]
            if lost:
                raise SystemExit(f"ranks {lost} failed; what they said stands above") from None


def _rank(rank: int, num_ranks: int, folder: str, cases: list[Case], rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=300),
    )
    group = dist.group.WORLD
    ours = join(OneSidedDispatchConfig(), num_experts=NUM_EXPERTS, group=group, timeout_s=300)
    assert isinstance(ours, OneSidedDispatcher), "there is no library; its reason is in the log"
    all_to_all = AllToAllDispatcher(AllToAllDispatchConfig(), num_experts=NUM_EXPERTS, group=group)
    results.put((rank, [_times(case, ours, all_to_all, rounds) for case in cases]))
    dist.barrier()
    dist.destroy_process_group()


def _times(case: Case, ours: OneSidedDispatcher, all_to_all: AllToAllDispatcher, rounds: int) -> Seconds:
    generator = torch.Generator().manual_seed(ours.exchange.rank)
    x = torch.randn(case.tokens, case.hidden, generator=generator).to(case.dtype).requires_grad_()
    grad = torch.randn(case.tokens, case.hidden, generator=generator).to(case.dtype)
    routing = _routing(case, generator)
    measures: dict[str, Callable[[], None]] = {
        "one_sided": partial(_round_trip, ours, x, routing, grad),
        "all_to_all": partial(_round_trip, all_to_all, x, routing, grad),
        "gloo": partial(_round_trip, PlainExchange(NUM_EXPERTS), x, routing, grad),
        "copies": _copies(case),
        "dispatch": partial(_dispatch, ours, x.detach(), routing),
        "memcpy": _memcpy(case, ours, x.detach()),
    }
    timed = {
        name: partial(_seconds, call, time.perf_counter if name in BY_WALL else time.process_time)
        for name, call in measures.items()
    }
    return interleave(timed, budget_s=0, least=rounds)


def _routing(case: Case, generator: torch.Generator) -> Routing:
    """Every token to `top_k` random experts."""
    scores = torch.rand(case.tokens, NUM_EXPERTS, generator=generator)
    weights, expert_ids = scores.softmax(1).topk(case.top_k)
    edges = torch.arange(case.tokens * case.top_k)
    return Routing(
        token_ids=edges // case.top_k,
        expert_ids=expert_ids.flatten(),
        choices=edges % case.top_k,
        weights=weights.flatten().requires_grad_(),
        num_tokens=case.tokens,
        num_experts=NUM_EXPERTS,
        num_choices=case.top_k,
    )


def _round_trip(dispatcher: Dispatcher, x: Tensor, routing: Routing, grad: Tensor) -> None:
    """Dispatch and combine, forward and backward; the experts return their rows."""
    dispatched = dispatcher.dispatch(x, routing)
    y = dispatcher.combine(dispatched.rows, dispatched)
    torch.autograd.grad(y, (x, routing.weights), grad)


def _dispatch(dispatcher: Dispatcher, x: Tensor, routing: Routing) -> None:
    dispatcher.dispatch(x, routing)


def _copies(case: Case) -> Callable[[], None]:
    """Dispatch, combine, and both ways back, if each were one plain copy of the rows and nothing else."""
    rows = torch.zeros(case.tokens * case.top_k, case.hidden, dtype=case.dtype)
    copied = torch.zeros_like(rows)

    def copy() -> None:
        for _ in range(4):
            copied.copy_(rows)

    return copy


def _memcpy(case: Case, ours: OneSidedDispatcher, x: Tensor) -> Callable[[], None]:
    """Copy as many bytes as a dispatch sends, an equal part to every rank, into a slab there."""
    exchange, part = ours.exchange, case.sent_bytes // ours.exchange.num_ranks
    slab = exchange.pool.empty(exchange.num_ranks * part, 1, torch.uint8)
    offset, segments = exchange.slab_of(slab), exchange.pool.segments
    offsets: list[Any] = [None] * exchange.num_ranks
    dist.all_gather_object(offsets, offset)
    targets = [
        address + start + exchange.rank * part
        for address, start in zip(segments.addresses, offsets, strict=True)
    ]
    half = x.numel() * x.itemsize - part

    def copy(held: Tensor = slab) -> None:
        for peer, target in enumerate(targets):
            ctypes.memmove(target, x.data_ptr() + min(peer * part, half), part)

    return copy


def _seconds(call: Callable[[], None], clock: Callable[[], float]) -> float:
    dist.barrier()
    began = clock()
    call()
    return clock() - began


def _rows(num_ranks: int, cases: list[Case], times: list[list[Seconds]]) -> list[dict[str, Any]]:
    rows = []
    for case, ranks in zip(cases, times, strict=True):
        cpu = {name: _each_round(sum, name, ranks) for name in CPU}
        wall = {name: _each_round(max, name, ranks) for name in BY_WALL}
        rows.append(
            {
                "ranks": num_ranks,
                "tokens": case.tokens,
                "hidden": case.hidden,
                "dtype": str(case.dtype).removeprefix("torch."),
                "top_k": case.top_k,
                "mib_sent": case.sent_bytes / 2**20,
                "cpu_over_gloo": median_ratio(cpu["one_sided"], cpu["gloo"]),
                "cpu_over_all_to_all": median_ratio(cpu["one_sided"], cpu["all_to_all"]),
                "copies_over_gloo": median_ratio(cpu["copies"], cpu["gloo"]),
                "cpu_ms": 1e3 * median(cpu["one_sided"]) / num_ranks,
                "gloo_cpu_ms": 1e3 * median(cpu["gloo"]) / num_ranks,
                "bandwidth_over_memcpy": median_ratio(wall["memcpy"], wall["dispatch"]),
                "gib_per_second": case.sent_bytes / 2**30 / median(wall["dispatch"]),
            }
        )
    return rows


def _each_round(over_ranks: Callable[[list[float]], float], name: str, ranks: list[Seconds]) -> list[float]:
    return [over_ranks(list(values)) for values in zip(*(times[name] for times in ranks), strict=True)]


if __name__ == "__main__":
    sys.exit(run_main(main))
