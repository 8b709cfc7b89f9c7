"""What the exchange does on GPUs, played on the CPU: symmetric memory by shared files, the kernels by the emulator.

The code is the one that runs on CUDA, but for the allocator. What cannot be played, streams that overlap and graphs,
is in tests/gpu.
"""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import static_slabs
import torch
import torch.distributed as dist
from conftest import require_tool
from exchange_cases import NUM_EXPERTS, SMALL, Case, Outcome, assert_as_expected, exchanged, inputs
from gloo_workers import run_workers
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_kernels import exchange as exchange_module
from moe_kernels import launch, slabs, symmetric_memory
from moe_kernels.agreement import gather
from moe_kernels.build import library_path
from moe_kernels.endpoint import CPU, first_slab
from moe_kernels.errors import KernelError, PeerTimeoutError
from moe_kernels.exchange import Exchange
from moe_kernels.library import DISPATCH, MoeFailure, load
from moe_kernels.select import Choice
from moe_train.parallel.world import World

SLAB_BYTES, NUM_SLABS = 1 << 18, 8
ops = torch.ops.moe_kernels


class PlayedMemory:
    """torch's `_SymmetricMemory` with the CPU for a GPU: as much of it as is used."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get_backend(self, device: torch.device) -> str:
        return "CUDA"

    def empty_strided_p2p(self, size, stride, dtype, device) -> torch.Tensor:
        assert (stride, dtype, device) == ((1,), torch.uint8, CPU)
        self.path = str(self.folder / f"segment of {dist.get_rank()}")
        memory = _mapped(self.path, *size)
        memory[: 1 << 20].fill_(0xAB)  # new memory of a GPU is not zero
        return memory

    def rendezvous(self, memory: torch.Tensor, group_name: str) -> SimpleNamespace:
        assert group_name == dist.group.WORLD.group_name
        mapped = [_mapped(path, memory.numel()) for path in gather(dist.group.WORLD, self.path)]
        mapped[dist.get_rank()] = memory
        dist.barrier()
        return SimpleNamespace(buffer_ptrs=[segment.data_ptr() for segment in mapped], keeps=mapped)


def _mapped(path: str, size: int) -> torch.Tensor:
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def choice(kind: str = "emulated") -> Choice:
    return Choice(kind, load(library_path(kind)), "as the test asks")


def played(group: dist.ProcessGroup | None, num_slabs: int = NUM_SLABS) -> Exchange:
    """An exchange as `join` makes it for a GPU."""
    chosen, num_ranks = choice(), dist.get_world_size(group) if group is not None else 1
    first = first_slab(chosen.library, num_ranks, NUM_EXPERTS)
    segments = symmetric_memory.share(group, first + num_slabs * SLAB_BYTES, first, CPU)
    return Exchange(
        chosen,
        segments,
        num_experts=NUM_EXPERTS,
        timeout_s=30,
        names=list(range(num_ranks)),
        slab_bytes=SLAB_BYTES,
    )


@pytest.fixture
def alone() -> Exchange:
    """An exchange of one rank in memory that would be a GPU's."""
    require_tool("g++", "g++")
    return played(None)


def run_played(world: World, folder: Path) -> list[Outcome]:
    symmetric_memory.c10d = SimpleNamespace(_SymmetricMemory=PlayedMemory(folder))
    exchange = played(dist.group.WORLD)
    for _ in range(2):  # the second finds slabs that were used
        given = inputs(static_slabs.CASE, world.rank, world.size)
        static_slabs.assert_right(static_slabs.round_trip(exchange, given), given)
    return [exchanged(exchange, case) for case in SMALL]


def test_two_ranks_in_symmetric_memory_do_what_the_reference_does(tmp_path):
    require_tool("g++", "g++")
    library_path("emulated")  # built here, where no rank waits for it
    found = run_workers(2, run_played, tmp_path)
    for position, case in enumerate(SMALL):
        assert_as_expected([outcomes[position] for outcomes in found], case)


@pytest.mark.parametrize("kind", ["cpu", "emulated"])
def test_a_dispatch_of_static_size_reads_nothing_on_the_host(kind, monkeypatch):
    require_tool("g++", "g++")
    monkeypatch.setattr(exchange_module, "choose", lambda device_type: choice(kind))
    exchange = Exchange.join(None, NUM_EXPERTS, timeout_s=5, slab_bytes=SLAB_BYTES, num_slabs=NUM_SLABS)
    given = inputs(static_slabs.CASE, 0, 1)
    capacity = static_slabs.room(exchange)

    def reads(*_):
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "check_expert_ids", reads)
        with pytest.raises(AssertionError, match="the host waits"):  # on the CPU ids are looked at
            exchange.dispatch_slab(given.x, given.expert_ids, capacity)
        patch.setattr(exchange, "check_expert_ids", lambda ids: None)
        for name in ("tolist", "item", "cpu", "numpy", "__int__", "__bool__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, reads)
        patch.setattr(static_slabs, "room", lambda exchange: capacity)
        y = static_slabs.round_trip(exchange, given)
        y.backward(given.grad_y, retain_graph=True)
        with pytest.raises(AssertionError, match="the host waits"):
            exchange.dispatch(given.x, given.expert_ids)
    given.x.grad = given.weights.grad = None
    static_slabs.assert_right(y, given)


def test_a_static_dispatch_tells_of_rows_without_room(alone):
    given = inputs(Case("too many", tokens=10), 0, 1)
    sent = alone.dispatch_slab(given.x, given.expert_ids, 7)
    assert (sent.rows.shape[0], int(sent.offsets[-1]), int(sent.overflow)) == (7, 7, 3)
    whole = alone.dispatch_slab(given.x, given.expert_ids)
    assert whole.rows.numel() * whole.rows.itemsize == SLAB_BYTES


def test_a_slab_taken_for_a_graph_is_never_given_to_anybody_else(alone, monkeypatch):
    monkeypatch.setattr(slabs, "is_capturing", lambda device: True)
    taken = alone.pool.empty(4, 4, torch.float32).data_ptr()
    monkeypatch.undo()
    given = inputs(Case("eager"), 0, 1)
    seen = {alone.dispatch(given.x.detach(), given.expert_ids).rows.data_ptr() for _ in range(6)}
    assert len(seen) == 2
    assert taken not in seen


class Late:
    """A library whose kernels fail after their launch, as on CUDA: the call itself says that all is well."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def __getattr__(self, name: str):
        return getattr(self.library, name)

    def moe_dispatch(self, group, *_) -> int:
        failure = MoeFailure.from_address(group._obj.failure)
        failure.peer, failure.epoch, failure.operation = 0, 7, DISPATCH
        return 0


@pytest.mark.parametrize("looks", ["dispatch", "next", "check"])
def test_a_failure_shows_once_the_host_has_waited_for_it(alone, looks):
    given = inputs(Case("late"), 0, 1)
    sent = alone.dispatch(given.x, given.expert_ids)
    alone.check()
    alone.library = Late(alone.library)
    said = "rank 0 of 1 timed out after 30 s: rank 0 did not reach dispatch number 7"
    if looks == "dispatch":  # it reads the sizes
        with pytest.raises(PeerTimeoutError, match=said):
            alone.dispatch(given.x, given.expert_ids)
    alone.dispatch_slab(given.x, given.expert_ids, 20) if looks != "dispatch" else None
    with pytest.raises(PeerTimeoutError, match=said):
        alone.combine(sent.rows, given.weights, sent) if looks == "next" else alone.check()


def refusals(world: World, folder: Path) -> list[str]:
    """What is said of each trouble that rank 1 has and rank 0 has not."""

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nA long story follows.")

    def no_access(*_):
        raise RuntimeError("peer access is not supported between these devices")

    said = []
    for name, trouble in {
        "empty_strided_p2p": no_memory,
        "get_backend": lambda device: "NVSHMEM",
        "rendezvous": no_access,
    }.items():
        memory = PlayedMemory(folder)
        memory.rendezvous = lambda *_: None
        if world.rank == 1:
            setattr(memory, name, trouble)
        symmetric_memory.c10d = SimpleNamespace(_SymmetricMemory=memory)
        with pytest.raises(KernelError) as caught:
            symmetric_memory.share(dist.group.WORLD, 1 << 20, 4096, CPU)
        said.append(str(caught.value))
    return said


def test_all_ranks_refuse_together_where_symmetric_memory_cannot_be_had(tmp_path):
    first, second = run_workers(2, refusals, tmp_path)
    assert first == second
    for said, expected in zip(
        first,
        (
            "0.00 GiB that other GPUs can reach are not to be had on cpu; lower slab_bytes or num_slabs "
            "(CUDA out of memory.)",
            "torch's symmetric memory is NVSHMEM for cpu, and must be CUDA; unset TORCH_SYMMMEM",
            "the GPUs do not reach each other's memory: peer access is not supported between these devices",
        ),
        strict=True,
    ):
        assert said == f"rank 1 of 2 reports: {expected}"


def test_the_functions_of_torch_that_symmetric_memory_calls_are_there():
    """Their types stand in torch/_C/_distributed_c10d.pyi; this notices when a torch has others."""
    real = symmetric_memory.c10d._SymmetricMemory
    for name in ("get_backend", "empty_strided_p2p", "rendezvous", "buffer_ptrs"):
        assert hasattr(real, name)


@pytest.mark.parametrize("operator", ["dispatch", "send", "pull"])
def test_operators_serve_cuda_tensors(operator):
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"moe_kernels::{operator}", key)


def test_fakes_of_cuda_tensors_are_on_cuda(alone):
    with FakeTensorMode():
        control, x = torch.empty(1, device="cuda"), torch.empty(6, 4, device="cuda")
        expert_ids = torch.empty(6, 2, dtype=torch.int32, device="cuda")
        weights = torch.empty(6, 2, device="cuda")
        rows, slots, sizes = ops.dispatch(alone.number, control, x, expert_ids, 12)
        y, peers = ops.pull(alone.number, control, rows, expert_ids, slots, weights)
        grads = ops.send(alone.number, control, y, expert_ids, slots, weights, peers, 12)
    assert {found.device.type for found in (rows, slots, sizes, y, peers, *grads)} == {"cuda"}


def test_what_is_on_another_device_is_refused(alone):
    x, expert_ids = torch.ones(2, 4), torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(KernelError, match="rows are on cpu and expert ids on meta; both must be on cpu"):
        alone.check_inputs(x, expert_ids.to("meta"))


def test_a_function_gets_the_current_stream_of_its_device(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    library = SimpleNamespace(moe_send=lambda *values: values)
    assert launch.enqueue(library, "moe_send", torch.device("cuda", 1), 5) == (5, 77)
    assert entered == [torch.device("cuda", 1)]
    assert launch.enqueue(library, "moe_send", CPU, 5) == (5, None)
