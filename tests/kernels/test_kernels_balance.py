"""The capacity limit, the balance loss and the bias update: every library against loops, and against moe_train."""

import itertools

import pytest
import torch
from chosen_library import disturb, use_library
from torch import Tensor

from moe_kernels.errors import KernelError
from moe_kernels.ops import balance as operators
from moe_kernels.ops.balance import balance_loss, limit_capacity, update_bias
from moe_kernels.reference import balance as reference
from moe_train.moe import losses
from moe_train.moe.capacity import within_capacity
from moe_train.moe.routing import Routing

pytestmark = pytest.mark.usefixtures("seeded")


def some_choices(num_tokens: int, num_choices: int, num_experts: int) -> Tensor:
    """Expert ids with a crowd at expert 0 and, here and there, no edge."""
    generator = torch.Generator().manual_seed(num_tokens + num_choices * 7 + num_experts)
    ids = torch.randint(-1, num_experts, (num_tokens, num_choices), generator=generator, dtype=torch.int32)
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, 0)


def some_priorities(num_tokens: int) -> Tensor:
    """With ties, both zeros, both infinities and NaN of either sign."""
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, 1e-30, torch.inf, -torch.inf, torch.nan, -torch.nan])
    return values[torch.randint(len(values), (num_tokens,), generator=torch.Generator().manual_seed(1))]


def limited_by_loops(
    expert_ids: Tensor, num_experts: int, capacity: int, group_tokens: int, priorities: Tensor | None
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Serve edge after edge."""
    num_tokens, num_choices = expert_ids.shape
    kept = [[-1] * num_choices for _ in range(num_tokens)]
    positions = [[-1] * num_choices for _ in range(num_tokens)]
    drops = []
    for begin in range(0, num_tokens, group_tokens):
        tokens = list(range(begin, min(begin + group_tokens, num_tokens)))
        if priorities is not None:
            given = {t: torch.inf if priorities[t].isnan() else priorities[t].item() for t in tokens}
            tokens.sort(key=lambda t: (not priorities[t].isnan(), -given[t], t))
        taken, dropped = [0] * num_experts, [0] * num_experts
        for choice, token in itertools.product(range(num_choices), tokens):
            expert = int(expert_ids[token, choice])
            if expert < 0:
                continue
            positions[token][choice] = taken[expert]
            taken[expert] += 1
            if positions[token][choice] < capacity:
                kept[token][choice] = expert
            else:
                dropped[expert] += 1
        drops.append(dropped)
    return kept, positions, drops


@pytest.mark.parametrize("with_priorities", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "num_choices", "num_experts", "capacity", "group_tokens"),
    [
        (1, 1, 1, 0, 1),
        (37, 2, 5, 3, 12),  # the last group is shorter
        (37, 8, 64, 2, 50),  # a group larger than all tokens
        (700, 3, 4, 100, 700),  # more than a chunk, and more than a tile of priorities
        (650, 1, 1024, 2, 325),
    ],
)
def test_the_limit_is_that_of_loops(
    library, num_tokens, num_choices, num_experts, capacity, group_tokens, with_priorities
):
    expert_ids = some_choices(num_tokens, num_choices, num_experts)
    priorities = some_priorities(num_tokens) if with_priorities else None
    result = limit_capacity(
        expert_ids, num_experts, capacity, group_tokens=group_tokens, priorities=priorities
    )
    kept, positions, drops = limited_by_loops(expert_ids, num_experts, capacity, group_tokens, priorities)
    assert result.kept.tolist() == kept
    assert result.positions.tolist() == positions
    assert result.drops.tolist() == drops


def test_first_choices_come_before_second_ones(library):
    expert_ids = torch.tensor([[1, 0], [0, 1], [0, -1]], dtype=torch.int32)
    result = limit_capacity(expert_ids, 2, 2)
    assert result.kept.tolist() == [[1, -1], [0, 1], [0, -1]]
    assert result.positions.tolist() == [[0, 2], [0, 1], [1, -1]]
    assert result.drops.tolist() == [[1, 0]]


def test_priority_goes_before_position_but_not_before_first_choices(library):
    expert_ids = torch.tensor([[0, 1], [0, 1], [1, 0]], dtype=torch.int32)
    result = limit_capacity(expert_ids, 2, 2, priorities=torch.tensor([0.5, 0.9, 1.0]))
    assert result.kept.tolist() == [[0, -1], [0, 1], [1, -1]]
    assert result.positions.tolist() == [[1, 2], [0, 1], [0, 2]]


def test_who_is_kept_by_priority_does_not_depend_on_position(library):
    expert_ids, priorities = some_choices(50, 2, 4), torch.rand(50)
    shuffled = torch.randperm(50)
    one = limit_capacity(expert_ids, 4, 8, priorities=priorities)
    other = limit_capacity(expert_ids[shuffled], 4, 8, priorities=priorities[shuffled])
    assert torch.equal(one.kept[shuffled], other.kept)
    assert (one.kept != expert_ids).any()


def test_the_limit_is_moe_trains(library):
    expert_ids = some_choices(48, 2, 6).clamp(min=0)
    index = torch.arange(96)
    routing = Routing(
        token_ids=index // 2,
        expert_ids=expert_ids.flatten().long(),
        choices=index % 2,
        weights=torch.ones(96),
        num_tokens=48,
        num_experts=6,
        num_choices=2,
    )
    fits = within_capacity(routing, group_tokens=16, slots=4).view(48, 2)
    result = limit_capacity(expert_ids, 6, 4, group_tokens=16)
    assert torch.equal(result.kept, expert_ids.masked_fill(~fits, -1))
    assert result.drops.sum() == (~fits).sum() > 0


def test_no_tokens_have_no_groups(library):
    result = limit_capacity(torch.empty(0, 2, dtype=torch.int32), 3, 1, group_tokens=4)
    assert [tuple(tensor.shape) for tensor in result] == [(0, 2), (0, 2), (0, 3)]


@pytest.mark.parametrize("kind", ["cpu", "emulated"])
def test_every_run_gives_the_same_verdict(kind, monkeypatch):
    use_library(kind, operators, monkeypatch)
    expert_ids, priorities = some_choices(700, 2, 5), some_priorities(700)
    runs = []
    for seed in (1, 2, 3):
        disturb(kind, seed, monkeypatch)
        runs.append(limit_capacity(expert_ids, 5, 30, group_tokens=150, priorities=priorities))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_the_balance_loss_is_moe_trains_with_its_gradient(library):
    probabilities = torch.randn(30, 7).softmax(1).requires_grad_()
    expert_ids = torch.randint(7, (30, 2))
    loads = torch.bincount(expert_ids.flatten(), minlength=7)
    mine = balance_loss(loads, probabilities.sum(0), 30)
    theirs = losses.balance_loss(probabilities, expert_ids, losses.TokenSets(30)).value
    torch.testing.assert_close(mine, theirs)
    grads = [torch.autograd.grad(3 * loss, probabilities)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(*grads)


def test_the_balance_loss_of_many_experts_is_the_references(library):
    loads = torch.randint(100, (127,), dtype=torch.int32)
    importance = torch.rand(127, requires_grad=True)
    loss, slopes = reference.balance_loss(loads, importance.detach().double(), 50)
    mine = balance_loss(loads, importance, 50)
    grad = torch.autograd.grad(mine, importance)[0]
    # 127 additions in float32 against float64.
    torch.testing.assert_close(mine.detach().double(), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), slopes, rtol=1e-6, atol=0)


def test_the_balance_loss_of_nothing_is_zero(library):
    nothing, importance = torch.zeros(4, dtype=torch.int32), torch.ones(4)
    assert balance_loss(nothing, importance, 3) == 0
    assert balance_loss(nothing + 1, importance, 0) == 0
    assert balance_loss(nothing + 1, importance / 4 * 3, 3) == 1  # uniform


def test_the_bias_moves_towards_the_mean_load(library):
    loads = torch.tensor([0, 5, 4, 7], dtype=torch.int32)
    bias = torch.tensor([0.5, 0.0, 0.0, 0.0])
    assert update_bias(bias, loads, 0.25).tolist() == [0.75, -0.25, 0, -0.25]
    assert bias.tolist() == [0.5, 0, 0, 0]


def test_the_sign_of_the_bias_update_is_exact(library):
    most = 2**31 - 1  # sums beyond 32 bits, differences beyond float32
    loads = torch.tensor([most, most - 1, most, most], dtype=torch.int32)
    assert update_bias(torch.zeros(4), loads, 1.0).tolist() == [-1, 1, -1, -1]
    crowded = torch.tensor([most, 0, 0], dtype=torch.int32)  # in 32 bits, -2 * most would come out as 2
    assert update_bias(torch.zeros(3), crowded, 1.0).tolist() == [-1, 1, 1]
    assert update_bias(torch.zeros(40), loads[:1].repeat(40), 1.0).tolist() == [0] * 40


def test_operators_keep_their_schemas(library):
    expert_ids, loads = some_choices(9, 2, 3), torch.tensor([1, 2, 3], dtype=torch.int32)
    importance = torch.rand(3, requires_grad=True)
    for priorities in (None, torch.rand(9)):
        torch.library.opcheck(operators._limit_capacity, (expert_ids, priorities, 3, 4, 2))
    torch.library.opcheck(operators._balance_loss, (loads, importance, 9))
    torch.library.opcheck(operators._update_bias, (importance.detach(), loads, 0.5))


def test_the_references_balance_loss_has_its_true_gradient():
    loads = torch.tensor([1, 0, 5], dtype=torch.int32)
    importance = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reference.balance_loss(loads, x, 4)[0], importance)
    loss, slopes = reference.balance_loss(loads, importance, 4)
    assert torch.equal(torch.autograd.grad(loss, importance)[0], slopes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 1025}, "num_experts=1025"),
        ({"group_tokens": 0}, "group_tokens=0"),
        ({"capacity": -1}, "capacity=-1"),
        ({"priorities": torch.zeros(3)}, r"\(3,\); 4 tokens need \(4,\)"),
    ],
)
def test_what_cannot_be_limited_is_named(arguments, message):
    with pytest.raises(KernelError, match=message):
        limit_capacity(torch.zeros(4, 1, dtype=torch.int32), **{"num_experts": 2, "capacity": 1, **arguments})
