"""The operators of the exchange and its pool of slabs, with one rank in this process."""

import gc
from itertools import pairwise

import pytest
import torch
from conftest import require_tool
from exchange_cases import CASES, NUM_EXPERTS, Case, exchanged, expected, inputs

from moe_kernels.errors import KernelError
from moe_kernels.exchange import Exchange
from moe_kernels.reference import exchange as reference

ops = torch.ops.moe_kernels


@pytest.fixture
def alone() -> Exchange:
    """An exchange of one rank."""
    require_tool("g++", "g++")
    return Exchange.join(None, NUM_EXPERTS, timeout_s=5, slab_bytes=1 << 20, num_slabs=8)


@pytest.fixture
def sent(alone):
    """A dispatch of six tokens with two choices each that fills its slab, as the operators see it."""
    given = inputs(Case("full", tokens=6, top_k=2), 0, 1)
    x, weights = given.x.detach(), given.weights.detach()
    rows, slots, *_ = ops.dispatch(alone.number, alone.control, x, given.expert_ids, 12)
    return x, given.expert_ids, weights, rows, slots


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_rank_does_what_the_reference_does(alone, case):
    (theirs,), mine = expected(case, 1), exchanged(alone, case)
    assert torch.equal(mine.rows, theirs.rows)
    assert (mine.counts, mine.overflow) == (theirs.counts, theirs.overflow)
    digits = 3e-2 if case.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(mine.y, theirs.y, rtol=digits, atol=digits)
    torch.testing.assert_close(mine.grad_x, theirs.grad_x, rtol=digits, atol=digits)


def test_operators_keep_their_schemas(alone, sent):
    x, expert_ids, weights, rows, slots = sent
    number, control = alone.number, alone.control
    _, peers = ops.pull(number, control, rows, expert_ids, slots, weights)
    # A copy of `rows` stands in another slab, which pull says: compiling it is the next test's business.
    every = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments, checks in (
        (ops.dispatch, (number, control, x, expert_ids, 12), every),
        (ops.pull, (number, control, rows, expert_ids, slots, weights), every[:3]),
        (ops.pull, (number, control, rows, expert_ids, slots, None), every[:3]),
        (ops.send, (number, control, x, expert_ids, slots, weights, peers, 12), every),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


def test_a_compiled_graph_issues_the_same_operations_in_the_same_order(alone):
    def round_trip(x, expert_ids, weights):
        rows, slots, sizes = ops.dispatch(alone.number, alone.control, x, expert_ids, 12)
        back, _ = ops.pull(alone.number, alone.control, rows, expert_ids, slots, None)
        y, _ = ops.pull(alone.number, alone.control, rows * 2, expert_ids, slots, weights)
        return y, back, sizes

    given = inputs(Case("compiled", tokens=6, top_k=2), 0, 1)
    arguments = given.x.detach(), given.expert_ids, given.weights.detach()
    plain = round_trip(*arguments)
    issued = alone.pool.issued
    compiled = torch.compile(round_trip, backend="aot_eager", fullgraph=True)(*arguments)
    assert alone.pool.issued == issued + 3
    for mine, theirs in zip(compiled, plain, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("case", [Case("fp32", 37, 70, 2), Case("bf16", 37, 64, 2, torch.bfloat16)], ids=str)
def test_threads_change_nothing(alone, case):
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(exchanged(alone, case))
    torch.set_num_threads(1)
    for mine, theirs in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def test_results_that_experts_write_where_peers_read_are_not_copied(alone):
    given = inputs(Case("in place", top_k=2), 0, 1)
    dispatched = alone.dispatch(given.x, given.expert_ids)
    rows = alone.empty_like(dispatched.rows)
    assert alone.in_slab(rows) is rows
    assert alone.in_slab(rows.clone()).data_ptr() != rows.data_ptr()
    torch.mul(dispatched.rows.detach(), 3, out=rows)
    y = alone.combine(rows.requires_grad_(), given.weights, dispatched)
    expected = alone.combine(dispatched.rows.detach() * 3, given.weights, dispatched)
    assert torch.equal(y, expected)


def test_gradients_reach_those_who_need_them_only(alone):
    given = inputs(Case("weights only", top_k=2), 0, 1)
    dispatched = alone.dispatch(given.x.detach(), given.expert_ids)
    assert not dispatched.rows.requires_grad
    y = alone.combine(dispatched.rows, given.weights, dispatched)
    y.sum().backward()
    by_hand = given.x.detach().sum(1, keepdim=True).expand_as(given.weights)
    torch.testing.assert_close(given.weights.grad, by_hand)


def test_rows_without_a_gradient_still_answer_their_peers(alone):
    given = inputs(Case("unused"), 0, 1)
    slots = alone.dispatch(given.x, given.expert_ids).rows
    issued = alone.pool.issued
    slots.sum().mul(0).backward()
    assert alone.pool.issued == issued + 1
    assert not given.x.grad.any()


def test_a_slab_rests_for_one_operation_after_it_was_freed(alone):
    given = inputs(Case("slabs"), 0, 1)

    def slab() -> int:
        return alone.dispatch(given.x.detach(), given.expert_ids).rows.data_ptr()

    seen = [slab() for _ in range(6)]
    assert len(set(seen)) == 2
    assert all(now != before for before, now in pairwise(seen))


def test_memory_that_was_never_used_is_free_at_once(alone):
    addresses = {alone.pool.empty(4, 4, torch.float32).data_ptr() for _ in range(5)}
    assert len(addresses) == 1


def test_a_slab_is_kept_while_a_view_of_it_is(alone):
    given = inputs(Case("views"), 0, 1)
    kept = [alone.dispatch(given.x.detach(), given.expert_ids).rows[1:3] for _ in range(4)]
    assert len({view.data_ptr() for view in kept}) == 4
    assert all(torch.equal(view, kept[0]) for view in kept)


def test_an_exchange_outlives_itself_in_its_rows(alone):
    given = inputs(Case("outlives"), 0, 1)
    other = Exchange.join(None, NUM_EXPERTS, timeout_s=5, slab_bytes=1 << 20, num_slabs=8)
    rows = other.dispatch(given.x.detach(), given.expert_ids).rows
    before = rows.clone()
    number = other.number
    del other
    gc.collect()
    assert torch.equal(rows, before)
    with pytest.raises(KernelError, match=f"exchange {number} no longer exists"):
        ops.dispatch(number, alone.control, given.x.detach(), given.expert_ids, 16)


def test_all_slabs_in_use_is_said(alone):
    given = inputs(Case("too many"), 0, 1)
    with pytest.raises(KernelError, match="all 8 slabs are in use"):
        [alone.dispatch(given.x.detach(), given.expert_ids).rows for _ in range(9)]


def test_rows_that_have_no_room_in_a_slab_are_refused():
    require_tool("g++", "g++")
    small = Exchange.join(None, NUM_EXPERTS, timeout_s=5, slab_bytes=4096, num_slabs=4)
    given = inputs(Case("large", tokens=70), 0, 1)
    with pytest.raises(KernelError, match="6 rows exceed the 64 that fit into a slab"):
        small.dispatch(given.x, given.expert_ids)
    with pytest.raises(KernelError, match="need 4480 bytes, but a slab has 4096; lower the capacity"):
        small.dispatch(given.x, given.expert_ids, capacity=70)


@pytest.mark.parametrize(
    ("x", "expert_ids", "said"),
    [
        (
            torch.ones(2, 4, dtype=torch.float64),
            torch.zeros(2, 1, dtype=torch.int32),
            "rows are torch.float64",
        ),
        (torch.ones(2, 4), torch.zeros(2, 1, dtype=torch.int64), "expert ids are torch.int64"),
        (torch.ones(2, 4), torch.full((2, 1), 8, dtype=torch.int32), "expert id 8: there are 8 experts"),
        (torch.ones(3, 4), torch.zeros(2, 1, dtype=torch.int32), "3 rows but expert ids of 2 tokens"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused_in_words(alone, x, expert_ids, said):
    with pytest.raises(KernelError, match=said):
        alone.dispatch(x, expert_ids)


def test_experts_that_the_ranks_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 3)
    with pytest.raises(KernelError, match="8 experts cannot be distributed over 3 ranks"):
        Exchange.join(object(), 8, timeout_s=5)


@pytest.mark.parametrize("capacity", [None, 3])
def test_the_reference_has_the_gradients_of_its_formulas(capacity):
    generator = torch.Generator().manual_seed(0)
    expert_ids = [torch.randint(-1, 4, (tokens, 2), generator=generator) for tokens in (3, 4)]
    shapes = [(3, 5), (4, 5), (3, 2), (4, 2)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def round_trip(x0, x1, w0, w1):
        arrived, _ = reference.dispatch([x0, x1], expert_ids, 4, [capacity, capacity])
        return tuple(reference.combine([received.rows.square() for received in arrived], [w0, w1], arrived))

    assert torch.autograd.gradcheck(round_trip, [leaf.requires_grad_() for leaf in leaves])
