"""From a routing to the tables of the kernels, and which dispatcher runs where."""

import logging

import pytest
import torch
import torch.distributed as dist
from conftest import require_tool
from tiny_model import tiny_recipe

from moe_kernels import exchange, select
from moe_kernels.errors import KernelError
from moe_train.config.check import problems
from moe_train.config.kinds.dispatch import AutoDispatchConfig, OneSidedDispatchConfig
from moe_train.moe.dispatch import auto, one_sided
from moe_train.moe.dispatch.all_to_all import AllToAllDispatcher
from moe_train.moe.dispatch.local import LocalDispatcher
from moe_train.moe.dispatch.one_sided import OneSidedDispatcher
from moe_train.moe.routing import Routing


def test_edges_become_tables_with_holes():
    routing = Routing(
        token_ids=torch.tensor([0, 0, 2]),
        expert_ids=torch.tensor([5, 3, 1]),
        choices=torch.tensor([0, 1, 1]),
        weights=torch.tensor([0.5, 0.25, 0.75], requires_grad=True),
        num_tokens=3,
        num_experts=8,
        num_choices=2,
    )
    expert_ids, weights = one_sided.tables(routing)
    assert expert_ids.dtype == torch.int32
    assert expert_ids.tolist() == [[5, 3], [-1, -1], [-1, 1]]
    assert weights.tolist() == [[0.5, 0.25], [0.0, 0.0], [0.0, 0.75]]
    weights.mul(torch.tensor([[1.0, 2.0], [9.0, 9.0], [9.0, 3.0]])).sum().backward()
    assert routing.weights.grad.tolist() == [1.0, 2.0, 3.0]


def test_without_a_library_all_to_all_takes_over_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr(
        exchange, "choose", lambda device: select.Choice("reference", None, "since g++ was not found")
    )
    with caplog.at_level(logging.INFO, "moe_train"):
        chosen = one_sided.join(OneSidedDispatchConfig(), num_experts=8, group=None, timeout_s=1.0)
    assert isinstance(chosen, AllToAllDispatcher)
    assert [record.message for record in caplog.records] == [
        "Experts are exchanged by all_to_all, since there is no kernel library, since g++ was not found."
    ]


def test_on_cuda_all_to_all_takes_over(monkeypatch, caplog):
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    with caplog.at_level(logging.INFO, "moe_train"):
        chosen = auto.choose(
            AutoDispatchConfig(), num_experts=8, group=dist.ProcessGroup(0, 2), timeout_s=1.0
        )
    assert isinstance(chosen, AllToAllDispatcher)
    assert caplog.messages == [
        "Experts are exchanged by all_to_all, since one_sided on CUDA must be asked for by name."
    ]


def test_on_cuda_one_sided_is_taken_by_name_with_memory_of_the_recipes_size(monkeypatch, caplog):
    """And where it cannot be had there, a line says why."""
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    config = OneSidedDispatchConfig(slab_mib=3, num_slabs=5)
    asked = {}

    def refuse(group, num_experts, timeout_s, **place):
        asked.update(place)
        raise KernelError("there is no such memory")

    monkeypatch.setattr(exchange.Exchange, "join", refuse)
    with caplog.at_level(logging.INFO, "moe_train"):
        chosen = one_sided.join(config, num_experts=8, group=dist.ProcessGroup(0, 2), timeout_s=1.0)
    assert asked == {"device": torch.device("cuda", 1), "slab_bytes": 3 << 20, "num_slabs": 5}
    assert isinstance(chosen, AllToAllDispatcher)
    assert caplog.messages == ["Experts are exchanged by all_to_all, since there is no such memory."]


def test_a_worker_that_holds_all_experts_exchanges_nothing_unless_asked_to():
    require_tool("g++", "g++")
    kinds = {auto.choose: LocalDispatcher, one_sided.join: OneSidedDispatcher}
    for choose, kind in kinds.items():
        assert isinstance(choose(AutoDispatchConfig(), num_experts=8, group=None, timeout_s=1.0), kind)


@pytest.mark.parametrize(("workers", "is_sound"), [(64, True), (128, False)])
def test_more_workers_than_can_share_memory_are_a_problem(workers, is_sound):
    shape = ("moe.num_experts=128", "data.global_batch=128", f"parallel.expert={workers}")
    found = [
        str(problem) for problem in problems(tiny_recipe("moe.dispatch.kind=one_sided", *shape), workers)
    ]
    said = [problem for problem in found if "shares memory among at most 64 workers" in problem]
    assert bool(said) != is_sound, found


@pytest.mark.parametrize("name", ["slab_mib", "num_slabs"])
def test_memory_of_no_size_is_a_problem(name):
    found = [
        str(problem)
        for problem in problems(tiny_recipe("moe.dispatch.kind=one_sided", f"moe.dispatch.{name}=0"), 1)
    ]
    assert any(f"moe.dispatch.{name}" in problem and "must be at least 1" in problem for problem in found), (
        found
    )
