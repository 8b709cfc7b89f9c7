"""Layers whose tensor ranks divide the tokens, and whose experts are spread over tensor ranks and cut in slices.

Every router of the registry, in few process groups: outputs, gradients, counts, and what reaches which expert.
"""

import pytest
from divided_layer import Case, compare_all
from gloo_workers import run_workers

from moe_train.config.registry import REGISTRY

KINDS = sorted(REGISTRY["moe.router"])
DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null", "model.activation=gelu")
LIMITED = ("moe.capacity_factor=1.0", "model.activation=swiglu", "moe.router.jitter=0.1")
LIKE_TRAINING = {
    "switch": (*LIMITED, "moe.router.reroutes=2"),
    "top_k": (*LIMITED, "moe.expert_dropout=0.3", "moe.scale_expert_gradients=true"),
    "batch_priority": LIMITED,
    "gshard": (*LIMITED, "moe.router.normalize_after_limit=true", "moe.group_sequences=2"),
}
HOSTS_OF_TWO = ("moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=2")
HOSTS_OF_ONE = ("moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=1")


def case(kind: str, *layout: str, name: str = "") -> Case:
    """A layer of `kind`, with whatever options make the most of its rules."""
    overrides = (f"moe.router.kind={kind}", *LIKE_TRAINING.get(kind, DROPLESS))
    return Case(f"{kind} {name}", overrides, layout)


def layouts(tensor: int, expert: int, expert_tensor: int, *exchange: str) -> tuple[str, ...]:
    return (
        f"parallel.tensor={tensor}",
        f"parallel.expert={expert}",
        f"parallel.expert_tensor={expert_tensor}",
        *exchange,
    )


FOLDED = [case(kind, *layouts(2, 2, 1)) for kind in KINDS]
FEW = ("switch", "top_k", "expert_choice", "smear", "soft")
ON_TWO = [
    *FOLDED,
    *(case(kind, *layouts(2, 1, 1)) for kind in FEW),
    *(
        case(kind, *layouts(2, 1, 2, *exchange))
        for kind in FEW
        for exchange in ((), ("moe.dispatch.kind=all_to_all",), HOSTS_OF_ONE)
    ),
    case("top_k", *layouts(1, 1, 2)),
    case("top_k", *layouts(2, 2, 1), name="is_padded"),
]


def test_tensor_ranks_share_the_tokens_and_the_experts_of_every_router():
    assert run_workers(2, compare_all, ON_TWO, 2e-6) == [len(ON_TWO)] * 2


EXCHANGES = ((), ("moe.dispatch.kind=all_to_all",), HOSTS_OF_TWO)
ON_FOUR = [
    case(kind, *layouts(tensor, expert, slices, *exchange))
    for kind in KINDS
    for tensor, expert, slices in (
        (2, 4, 1),
        (4, 2, 2),
        (4, 1, 4),
        (2, 2, 2),
        (1, 2, 2),
        (2, 1, 2),
        (4, 1, 1),
        (2, 2, 1),
    )
    for exchange in EXCHANGES
    if expert * slices > 2 or exchange != HOSTS_OF_TWO
    if expert * slices > 1 or not exchange
    if tensor > 1 or kind != "gshard"  # whose groups of two sequences four data ranks would part
]


@pytest.mark.distributed_exhaustive
def test_every_layout_of_four_ranks_gives_what_one_rank_does():
    assert run_workers(4, compare_all, ON_FOUR, 2e-6, timeout_s=1200) == [len(ON_FOUR)] * 4


@pytest.mark.distributed_exhaustive
def test_three_tensor_ranks_share_six_experts():
    cases = [
        Case(each.name, (*each.overrides, "moe.num_experts=6"), each.layout)
        for kind in KINDS
        for each in (case(kind, *layouts(3, 3, 1)), case(kind, *layouts(3, 1, 1)))
        # Whose groups do not divide six experts, or whose codes need a power of two.
        if kind not in ("deepseek", "hierarchical_top_k", "prototypes", "dselect_k")
    ]
    assert run_workers(3, compare_all, cases, 2e-6, timeout_s=600) == [len(cases)] * 3
