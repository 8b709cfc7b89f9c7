"""Routers and objectives that need more of a layout than top-k does: the same run on every one."""

import pytest
from gloo_workers import run_workers
from layout_run import train
from test_layouts import assert_same_gradients, assert_same_run, one_process

# gelu, because relu has a kink: an activation of about 0 moves a gradient, though neither a loss nor a load.
DROPLESS = (
    "model.dropout=0.1",
    "model.activation=gelu",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
)
THOR = (*DROPLESS, "moe.router.kind=thor", "objective.kind=consistency")
DENSE_TO_SPARSE = (
    *DROPLESS,
    "moe.router.kind=dense_to_sparse",
    "moe.router.decay_steps=3",
    "moe.router.threshold=0.05",
    "moe.router.hard_step=4",
)
BASE = (*DROPLESS, "moe.router.kind=base")
SINKHORN = (*DROPLESS, "moe.router.kind=sinkhorn")
# A slower rate, because the entropy of an almost settled digit is steep: at 3, rounding grows tenfold with a step.
DSELECT_K = (
    *DROPLESS,
    "moe.router.kind=dselect_k",
    "moe.router.entropy_coefficient=0.01",
    "optim.lr=0.3",
)
SOFT = (*DROPLESS, "moe.router.kind=soft", "moe.router.slots_per_expert=2")
SMEAR = (*DROPLESS, "moe.router.kind=smear", "moe.router.segment=8")
REINFORCE = (*DROPLESS, "moe.router.kind=reinforce", "moe.router.policy_coefficient=1")
HIERARCHICAL_TOP_K = (*DROPLESS, "moe.router.kind=hierarchical_top_k")
DROPOUT = (
    "model.activation=gelu",
    "moe.router.kind=top_k",
    "moe.router.jitter=0",
    "moe.expert_dropout=0.3",
    "moe.scale_expert_gradients=true",
)
FAST = [
    (THOR, 2, ("parallel.expert=2",)),
    (BASE, 2, ("parallel.expert=2", "data.micro_batch=2")),
    (SMEAR, 2, ("parallel.expert=2", "data.micro_batch=2")),
]
EVERY = [
    (THOR, 2, ("parallel.expert=1", "data.micro_batch=2", "engine.reshard_after_forward=true")),
    ((*THOR, "moe.router.inference=token"), 2, ("parallel.expert=2", "data.micro_batch=2")),
    (DENSE_TO_SPARSE, 2, ("parallel.expert=2",)),
    *(
        ((*router, "moe.num_experts=[4,8]"), 2, ("parallel.expert=2",))
        for router in (SOFT, SMEAR, DENSE_TO_SPARSE, DROPOUT)
    ),
    *(
        (router, 4, (f"parallel.expert={expert}", *exchange))
        for router in (
            THOR,
            DENSE_TO_SPARSE,
            BASE,
            SINKHORN,
            DSELECT_K,
            SOFT,
            SMEAR,
            REINFORCE,
            HIERARCHICAL_TOP_K,
        )
        for expert in (1, 2, 4)
        for exchange in ((), ("moe.dispatch.kind=all_to_all",))
        if expert > 1 or not exchange
    ),
]


def kind_of(value: object) -> str | None:
    """The part of a case that names it."""
    return next((part for part in value if "router.kind" in part), None) if isinstance(value, tuple) else None


def assert_trains_like_one_process(router: tuple[str, ...], workers: int, layout: tuple[str, ...]) -> None:
    runs = run_workers(workers, train, *router, *layout)
    assert_same_gradients(one_process(router), runs, digits=1e-5)
    assert_same_run(one_process(router), runs, digits=2e-6)


@pytest.mark.parametrize(("router", "workers", "layout"), FAST, ids=kind_of)
def test_a_router_trains_like_one_process(router, workers, layout):
    assert_trains_like_one_process(router, workers, layout)


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize(("router", "workers", "layout"), EVERY, ids=kind_of)
def test_a_router_trains_like_one_process_on_every_layout(router, workers, layout):
    assert_trains_like_one_process(router, workers, layout)
