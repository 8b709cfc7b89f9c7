"""The exchange across hosts, played by groups of processes: the reference, what crosses, and a host that is lost."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import require_tool
from exchange_cases import CASES, NUM_EXPERTS, SMALL, Case, Outcome, experts, inputs, with_gradients
from exchange_steps import STEPS, Stack, step
from gloo_workers import run_workers
from lost_ranks import die, lose

from moe_kernels.errors import KernelError, PeerTimeoutError
from moe_kernels.hierarchical import Hierarchical
from moe_kernels.hosts import Hosts
from moe_kernels.reference import exchange as one_host
from moe_kernels.reference import hierarchical as reference
from moe_train.parallel.world import World

RANKS = 4
CASES_OF = {1: SMALL, 2: CASES, 4: SMALL}
"""By ranks per host: 4 hosts, 2 hosts, a single one."""
Left = list[tuple[torch.dtype, int]]
"""Type of what went over an all-to-all, and the rows of it that left this rank; in order."""


@contextmanager
def watched() -> Iterator[Left]:
    """What this rank gives to others by all-to-alls in the meantime."""
    seen: Left = []
    plain = dist.all_to_all_single

    def watching(out, rows, receive, send, group):
        seen.append((rows.dtype, sum(send) - send[dist.get_rank(group)]))
        return plain(out, rows, receive, send, group=group)

    dist.all_to_all_single = watching
    try:
        yield seen
    finally:
        dist.all_to_all_single = plain


def exchanged(exchange: Hierarchical, case: Case, world: World) -> tuple[Outcome, Left]:
    """One case on this rank."""
    given = inputs(case, world.rank, world.size)
    with watched() as left:
        sent = exchange.dispatch(given.x, given.expert_ids, case.capacity)
        rows = sent.rows.detach().clone()
        y = exchange.combine(experts(sent.rows, sent.counts, world.rank), given.weights, sent)
        y.backward(given.grad_y)
    outcome = Outcome(rows, sent.counts, sent.overflow, y.detach(), given.x.grad, given.weights.grad)
    return outcome, left


def run_cases(world: World) -> dict[tuple[int, Case], tuple[Outcome, Left]]:
    found = {}
    for ranks_per_host, cases in CASES_OF.items():
        exchange = Hierarchical.join(dist.group.WORLD, NUM_EXPERTS, 30, ranks_per_host)
        for case in cases:
            found[ranks_per_host, case] = exchanged(exchange, case, world)
    return found


@cache
def outcomes() -> list[dict[tuple[int, Case], tuple[Outcome, Left]]]:
    """What every rank got in every case: one start of the processes for all of them."""
    return run_workers(RANKS, run_cases)


def expected(case: Case, ranks_per_host: int) -> tuple[list[Outcome], list[int]]:
    """The same of all ranks by the reference, and the rows that each sends to other hosts."""
    ranks = [inputs(case, rank, RANKS) for rank in range(RANKS)]
    crossed, overflow = reference.dispatch(
        [given.x for given in ranks],
        [given.expert_ids for given in ranks],
        NUM_EXPERTS,
        ranks_per_host,
        [case.capacity] * RANKS,
    )
    outputs = [experts(received.rows, received.counts, rank) for rank, received in enumerate(crossed.arrived)]
    ys = reference.combine(outputs, [given.weights for given in ranks], crossed)
    return with_gradients(ranks, crossed.arrived, overflow, ys), crossed.num_crossing


def hosts_elsewhere(case: Case, rank: int, ranks_per_host: int) -> int:
    """Pairs of a token of this rank and another host that has an expert for it."""
    per_host = NUM_EXPERTS // (RANKS // ranks_per_host)
    rows = inputs(case, rank, RANKS).expert_ids.tolist()
    own = rank // ranks_per_host
    return sum(len({expert // per_host for expert in row if expert >= 0} - {own}) for row in rows)


@pytest.mark.parametrize(
    ("ranks_per_host", "case"), [(size, case) for size, cases in CASES_OF.items() for case in cases], ids=str
)
def test_the_exchange_across_hosts_does_what_the_reference_does(ranks_per_host: int, case: Case):
    require_tool("g++", "g++")
    found = [of_rank[ranks_per_host, case] for of_rank in outcomes()]
    theirs, num_crossing = expected(case, ranks_per_host)
    for rank, ((mine, left), other) in enumerate(zip(found, theirs, strict=True)):
        assert torch.equal(mine.rows, other.rows), f"rank {rank}"
        assert (mine.counts, mine.overflow) == (other.counts, other.overflow), f"rank {rank}"
        digits = 2e-2 if case.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(mine.y, other.y, rtol=digits, atol=digits)
        torch.testing.assert_close(mine.grad_x, other.grad_x, rtol=digits, atol=digits)
        # A dot product of bf16 rows is rounded in the reference's backward pass, and not in the kernel.
        scale = float(other.grad_weights.abs().max()) if other.grad_weights.numel() else 1.0
        torch.testing.assert_close(mine.grad_weights, other.grad_weights, rtol=0, atol=digits * scale)
        crossing = hosts_elsewhere(case, rank, ranks_per_host)
        assert num_crossing[rank] == crossing
        if ranks_per_host == RANKS:
            assert left == []
        else:  # counts, rows, their edges
            num_others = RANKS // ranks_per_host - 1
            assert left[:3] == [(torch.int64, num_others), (case.dtype, crossing), (torch.int32, crossing)]


def compare_with_gloo(world: World) -> list[int]:
    """Raises where a step differs; returns the slabs that were ever in use, after each step."""
    exchange = Hierarchical.join(dist.group.WORLD, NUM_EXPERTS, 30, ranks_per_host=2)
    ours, theirs = Stack(world, exchange), Stack(world, None)
    touched = []
    for number in range(STEPS):
        for mine, other in zip(step(ours, world, number), step(theirs, world, number), strict=True):
            torch.testing.assert_close(mine, other)
        touched.append(exchange.exchange.pool.num_touched)
    return touched


def test_layers_accumulation_and_evaluation_share_the_slabs():
    require_tool("g++", "g++")
    for touched in run_workers(RANKS, compare_with_gloo):
        assert touched[-1] == touched[1], f"slabs in use by step: {touched}"


def without_the_last(world: World) -> bool:
    """Four ranks make their groups while the fifth makes none."""
    group = dist.new_group(range(RANKS))
    if world.rank == RANKS:
        return True
    case, four = SMALL[0], World(world.rank, RANKS, world.rank, 1, world.device)
    again = [exchanged(Hierarchical.join(group, NUM_EXPERTS, 30, 2), case, four)[0].y for _ in range(2)]
    return torch.equal(*again) and torch.equal(again[0], expected(case, 2)[0][world.rank].y)


def test_ranks_outside_the_group_need_not_take_part():
    require_tool("g++", "g++")
    assert all(run_workers(RANKS + 1, without_the_last))


FOUND = {
    "aaaa": (1, 4),
    "aabb": (2, 2),
    "abcd": (4, 1),
    "abab": "must be consecutive, and every host must have the same number, but a has [0, 2], b has [1, 3]",
    "aaab": "must be consecutive, and every host must have the same number, but a has [0, 1, 2], b has [3]",
}
"""By the host of each rank: hosts and ranks per host, or what is wrong."""


def found(world: World) -> list[Hosts | str]:
    seen: list[Hosts | str] = []
    for names in FOUND:
        socket.gethostname = lambda names=names: names[world.rank]
        try:
            seen.append(Hosts.of(dist.group.WORLD))
        except KernelError as error:
            seen.append(str(error))
    return seen


def test_hosts_are_found_by_their_names():
    for rank, seen in enumerate(run_workers(RANKS, found)):
        for mine, expected in zip(seen, FOUND.values(), strict=True):
            assert expected in mine if isinstance(expected, str) else mine == Hosts(*expected, rank)


def test_a_number_of_ranks_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group: 4)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    with pytest.raises(KernelError, match="ranks_per_host=3: must divide the number of ranks, 4"):
        Hierarchical.join(object(), NUM_EXPERTS, 30, ranks_per_host=3)
    with pytest.raises(KernelError, match="6 experts cannot be distributed over 4 ranks"):
        Hierarchical.join(object(), 6, 30, ranks_per_host=2)


def refused(world: World) -> str:
    os.environ["MOE_KERNELS"] = "reference" if world.rank == 3 else "cpu"
    with pytest.raises(KernelError) as caught:
        Hierarchical.join(dist.group.WORLD, NUM_EXPERTS, 30, ranks_per_host=2)
    return str(caught.value)


def test_all_hosts_refuse_together_when_one_has_no_library():
    require_tool("g++", "g++")
    said = run_workers(RANKS, refused)
    assert len(set(said)) == 1
    assert "rank 1 of 2 reports: there is no kernel library, set by MOE_KERNELS" in said[0]


def until_it_fails(rank: int, folder: Path, victim: int) -> str:
    """Dispatch, combine and go back for ever; returns what is said in the end."""
    exchange = Hierarchical.join(dist.group.WORLD, NUM_EXPERTS, 60, ranks_per_host=2)
    x, weights = torch.ones(4, 16, requires_grad=True), torch.ones(4, 2)
    expert_ids = torch.arange(8, dtype=torch.int32).view(4, 2)
    try:
        for number in range(10**9):
            sent = exchange.dispatch(x, expert_ids)
            y = exchange.combine(sent.rows, weights, sent)
            if (rank, number) == (victim, 2):
                die()
            y.sum().backward()
    except PeerTimeoutError as error:
        return str(error)
    return ""


def test_a_lost_host_ends_every_rank_with_a_word_about_who(tmp_path):
    require_tool("g++", "g++")
    said = lose(3, RANKS, tmp_path, until_it_fails, 3)
    assert said[1].startswith("rank 1: the exchange between ranks [1, 3] failed: ")
    for rank in (0, 2):  # whoever it waits for on its host
        assert said[rank].startswith(
            f"rank {rank} of 4 stopped waiting: the process of rank {rank + 1} exited before it reached "
        )


@pytest.mark.parametrize("ranks_per_host", [1, 2, 4])
def test_the_reference_agrees_with_a_single_host_and_has_the_gradients_of_its_formulas(ranks_per_host):
    generator = torch.Generator().manual_seed(0)
    tokens = (2, 0, 3, 1)
    expert_ids = [torch.randint(-1, 4, (num, 2), generator=generator) for num in tokens]
    leaves = [
        torch.randn((num, width), generator=generator, dtype=torch.float64).requires_grad_()
        for width in (3, 2)
        for num in tokens
    ]
    capacities = [None] * RANKS

    def across(*leaves):
        crossed, _ = reference.dispatch(list(leaves[:4]), expert_ids, 4, ranks_per_host, capacities)
        rows = [received.rows.square() for received in crossed.arrived]
        return tuple(reference.combine(rows, list(leaves[4:]), crossed))

    arrived, _ = one_host.dispatch(leaves[:4], expert_ids, 4, capacities)
    ys = one_host.combine([received.rows.square() for received in arrived], leaves[4:], arrived)
    torch.testing.assert_close(across(*leaves), tuple(ys))
    assert torch.autograd.gradcheck(across, leaves)
