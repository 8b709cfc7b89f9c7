"""Which dispatcher `auto` takes, and what the others do where they cannot be had; hosts are played by names."""

import os
import socket

import pytest
import torch.distributed as dist
from conftest import require_tool
from gloo_workers import run_workers

from moe_kernels.hierarchical import Hierarchical
from moe_kernels.select import choose as choose_library
from moe_train.config.kinds import dispatch as kinds
from moe_train.config.registry import build
from moe_train.moe.dispatch.dispatcher import Dispatcher
from moe_train.moe.dispatch.one_sided import OneSidedDispatcher
from moe_train.parallel.world import World

ON_HOSTS = [
    ("aaaa", kinds.AutoDispatchConfig(), "Exchange"),
    ("aabb", kinds.AutoDispatchConfig(), "2 x 2"),
    ("abcd", kinds.AutoDispatchConfig(), "all_to_all, since every worker has a host of its own."),
    (
        "abab",
        kinds.AutoDispatchConfig(),
        "all_to_all, since ranks of one host must be consecutive, and every host must have the same number, but "
        "a has [0, 2], b has [1, 3]; start the ranks host by host, or exchange rows by an all-to-all.",
    ),
    ("aabb", kinds.HierarchicalDispatchConfig(), "2 x 2"),
    ("aaaa", kinds.HierarchicalDispatchConfig(), "1 x 4"),
    ("abab", kinds.HierarchicalDispatchConfig(ranks_per_host=2), "2 x 2"),
    ("abcd", kinds.HierarchicalDispatchConfig(), "4 x 1"),
]
WITHOUT_A_LIBRARY = [
    ("aaaa", kinds.AutoDispatchConfig(), "all_to_all, since rank 0 of 4 reports: there is no kernel library"),
    (
        "aabb",
        kinds.HierarchicalDispatchConfig(),
        "all_to_all, since rank 0 of 4 reports: in the exchange of its host, rank 0 of 2 reports: there is no kernel",
    ),
]
Case = tuple[str, kinds.DispatchConfig, str]


def taken(world: World, cases: list[Case], library: str) -> list[str]:
    """What each case got: the kind of exchange, or the line that tells of the fall-back."""
    os.environ["MOE_KERNELS"] = library
    choose_library.cache_clear()
    found = []
    for hosts, config, _ in cases:
        socket.gethostname = lambda hosts=hosts: hosts[world.rank]
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr(
                "moe_train.moe.dispatch.fallback.log.info",
                lambda text, *values, said=said: said.append(text % values),
            )
            dispatcher = build("moe.dispatch", config, num_experts=8, group=dist.group.WORLD, timeout_s=30.0)
        found.append(_kind(dispatcher) or said[-1].removeprefix("Experts are exchanged by "))
    return found


def _kind(dispatcher: Dispatcher) -> str | None:
    if not isinstance(dispatcher, OneSidedDispatcher):
        return None
    exchange = dispatcher.exchange
    if isinstance(exchange, Hierarchical):
        return f"{exchange.hosts.num_hosts} x {exchange.hosts.ranks_per_host}"
    return type(exchange).__name__


@pytest.mark.parametrize(("cases", "library"), [(ON_HOSTS, "cpu"), (WITHOUT_A_LIBRARY, "reference")])
def test_the_dispatcher_that_fits_the_hosts_is_taken_and_a_fall_back_says_why(cases, library):
    require_tool("g++", "g++")
    for found in run_workers(4, taken, cases, library):
        for got, (hosts, config, expected) in zip(found, cases, strict=True):
            assert got.startswith(expected), (hosts, config)
