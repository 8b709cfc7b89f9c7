"""Exchanges rows between the ranks that share a layer's experts; users of the kernels hold an Exchange.

One exchange serves any number of layers. All ranks issue the same operations in the same order, as with collectives,
in the backward pass too. Read autograd.py for the gradients, ops/ for the operators, slabs.py for the memory.
On CUDA operations are enqueued: those of an exchange, and whatever else touches its rows, must be on one stream or on
streams that wait for each other. A failure is raised by the next operation or by `check`.
T tokens of this rank, K choices, D width, E experts in all, L of this rank, R rows received, C capacity.
"""

import ctypes
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_kernels import shared_memory, symmetric_memory
from moe_kernels.autograd import CombineRows, DispatchRows
from moe_kernels.errors import KernelError, PeerTimeoutError
from moe_kernels.launch import enqueue
from moe_kernels.library import (
    BFLOAT16,
    COMBINE,
    DISPATCH,
    FLOAT32,
    GONE,
    MAX_RANKS,
    OPERATION_NAMES,
    PULL,
    SEND,
    UNSUPPORTED,
    MoeFailure,
    MoeGroup,
    MoeRows,
)
from moe_kernels.registry import register
from moe_kernels.segments import Segments
from moe_kernels.select import Choice, choose
from moe_kernels.slabs import SlabPool

TYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
FUNCTIONS = {DISPATCH: "moe_dispatch", COMBINE: "moe_pull", SEND: "moe_send", PULL: "moe_pull"}
SLAB_BYTES, NUM_SLABS = 4 << 30, 256
"""Sizes on the CPU: address space, not memory, of 1 TiB for each rank, out of the 128 that a process has."""
PAGE = 4096
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Dispatched:
    """Holds the rows for this rank's experts, and what combine and the backward passes need."""

    rows: Tensor
    """[R, D], in order of local expert, then source rank, then edge."""
    counts: list[int]
    """Number of rows of each local expert."""
    overflow: int
    """Number of edges of all ranks that exceeded a capacity, the same on every rank."""
    expert_ids: Tensor
    slots: Tensor
    """[T, K]: the row of each edge at its expert's rank; -1: no edge, or beyond the capacity."""


@dataclass(frozen=True)
class DispatchedSlab:
    """Holds the same without the number of rows: everything stays on the device, and sizes are static."""

    rows: Tensor
    """[C, D]: a whole slab. Rows from offsets[L] on are undefined, and so are their gradients."""
    offsets: Tensor
    """[L+1] int32: where the rows of each local expert begin, and where those of the last one end."""
    overflow: Tensor
    """[1] int32: number of edges of all ranks that exceeded a capacity."""
    expert_ids: Tensor
    slots: Tensor


class Exchange:
    """Represents one rank's end of the exchange. After a failure every later operation raises the same error."""

    def __init__(
        self,
        choice: Choice,
        segments: Segments,
        *,
        num_experts: int,
        timeout_s: float,
        names: list[int],
        slab_bytes: int = SLAB_BYTES,
    ):
        assert choice.library is not None
        self.library, self.rank, self.num_ranks = choice.library, segments.rank, len(segments.addresses)
        self.num_experts, self.num_local = num_experts, num_experts // self.num_ranks
        self.pool = SlabPool(segments, _first_slab(choice.library, self.num_ranks, num_experts), slab_bytes)
        self.device = segments.memory.device
        self.control = torch.zeros(1, device=self.device)
        self.number = register(self)
        self.names = names
        """Numbers in the whole run of the group's ranks, which errors use."""
        # Read here while kernels may write to it, so it must be host memory that a GPU can access.
        self._failure_memory = torch.zeros(
            ctypes.sizeof(MoeFailure), dtype=torch.uint8, device=CPU, pin_memory=self.device.type == "cuda"
        )
        self._failure = MoeFailure.from_address(self._failure_memory.data_ptr())
        self._group = MoeGroup(
            ranks=self.num_ranks,
            rank=self.rank,
            experts=num_experts,
            timeout_ms=max(1, round(1000 * timeout_s)),
            failure=self._failure_memory.data_ptr(),
        )
        self._group.segments[: self.num_ranks] = segments.addresses
        self._group.processes[: self.num_ranks] = segments.processes
        self._workspace = torch.empty(0, dtype=torch.uint8, device=self.device)

    @classmethod
    def join(
        cls,
        group: dist.ProcessGroup | None,
        num_experts: int,
        timeout_s: float,
        *,
        slab_bytes: int = SLAB_BYTES,
        num_slabs: int = NUM_SLABS,
        device: torch.device = CPU,
    ) -> "Exchange":
        """Connects with the other ranks of `group` (None: this process alone). Collective.

        A rank that waits longer than `timeout_s` for a peer gives up. On a CUDA `device`, `slab_bytes` times
        `num_slabs` of its memory is allocated: `slab_bytes` must fit the largest dispatch, and `num_slabs` the slabs in
        use at once. Raises KernelError, on all ranks: no library, too little memory, ranks on several hosts, or a
        number of experts that the ranks do not divide.
        """
        num_ranks = dist.get_world_size(group) if group is not None else 1
        if num_experts % num_ranks or num_ranks > MAX_RANKS:
            raise KernelError(
                f"{num_experts} experts cannot be distributed over {num_ranks} ranks; the number of ranks must "
                f"divide the number of experts, and be at most {MAX_RANKS}"
            )
        choice = choose(device.type)
        problem, first = None, 0
        if choice.library is None:
            problem = f"there is no kernel library, {choice.reason}"
        else:
            first = _first_slab(choice.library, num_ranks, num_experts)
        size = first + slab_bytes * num_slabs
        if device.type == "cuda":
            segments = symmetric_memory.share(group, size, first, device, problem)
        else:
            segments = shared_memory.share(group, size, problem)
        names = dist.get_process_group_ranks(group) if group is not None else [0]
        return cls(
            choice,
            segments,
            num_experts=num_experts,
            timeout_s=timeout_s,
            names=names,
            slab_bytes=slab_bytes,
        )

    def dispatch(self, x: Tensor, expert_ids: Tensor, capacity: int | None = None) -> Dispatched:
        """Sends the rows of `x` [T, D], fp32 or bf16, to their experts. Collective.

        `expert_ids` [T, K] int32: -1 is no edge. `capacity` is the most rows that this rank accepts; edges beyond it
        are dropped and counted. Without it all edges must fit. Raises PeerTimeoutError, KernelError.
        """
        expert_ids, room = expert_ids.contiguous(), self._room(x)
        rows, slots, _, sizes = DispatchRows.apply(
            x, expert_ids, self, room if capacity is None else capacity, True
        )
        *starts, overflow = sizes
        if overflow and capacity is None:
            raise KernelError(f"{overflow} rows exceed the {room} that fit into a slab; use larger slabs")
        counts = [end - start for start, end in pairwise(starts)]
        return Dispatched(rows, counts, overflow, expert_ids, slots)

    def dispatch_slab(self, x: Tensor, expert_ids: Tensor, capacity: int | None = None) -> DispatchedSlab:
        """Sends rows like `dispatch` without waiting for the device, so a CUDA graph can contain it. Collective.

        Pass `rows` to products that take offsets, and check `overflow` later; without a `capacity`, the slab is the
        limit.
        """
        expert_ids, room = expert_ids.contiguous(), self._room(x)
        rows, slots, sizes, _ = DispatchRows.apply(
            x, expert_ids, self, room if capacity is None else capacity, False
        )
        return DispatchedSlab(rows, sizes[:-1], sizes[-1:], expert_ids, slots)

    def combine(self, rows: Tensor, weights: Tensor, dispatched: Dispatched | DispatchedSlab) -> Tensor:
        """Returns y [T, D] from the experts' results `rows` [R, D], ordered as `dispatched.rows`. Collective.

        `weights` are [T, K] fp32. `rows` from `empty_like` are read in place, others are copied once. They must not
        change until the backward pass. Raises PeerTimeoutError, KernelError.
        """
        if rows.shape != dispatched.rows.shape or weights.shape != dispatched.slots.shape:
            raise KernelError(
                f"rows {list(rows.shape)} and weights {list(weights.shape)} do not match what was dispatched: "
                f"{list(dispatched.rows.shape)} and {list(dispatched.slots.shape)}"
            )
        if weights.dtype != torch.float32:
            raise KernelError(f"weights are {weights.dtype}; give them as float32")
        return CombineRows.apply(rows, weights, dispatched.expert_ids, dispatched.slots, self)

    def empty_like(self, rows: Tensor) -> Tensor:
        """Returns memory for rows of this shape and type that peers can read: experts' results, rows' gradients."""
        return self.pool.empty(rows.shape[0], rows.shape[1], rows.dtype)

    def check(self) -> None:
        """Raises PeerTimeoutError if an operation has failed; on CUDA, one that the caller has waited for."""
        if self._failure.operation:
            raise PeerTimeoutError(self._what_failed())

    def check_expert_ids(self, expert_ids: Tensor) -> None:
        """Raises KernelError for an expert id that is too high, with which kernels would write out of bounds.

        On CUDA this waits for the device, so there dispatch leaves it to the caller.
        """
        if expert_ids.numel() and (highest := int(expert_ids.max())) >= self.num_experts:
            raise KernelError(f"expert id {highest}: there are {self.num_experts} experts, counted from 0")

    # The methods below are for the operators in ops/.

    def in_slab(self, rows: Tensor) -> Tensor:
        """Returns `rows` if they are in a slab, else a copy that is."""
        if rows.numel() == 0 or self.pool.offset_of(rows) is not None:
            return rows
        return self.empty_like(rows).copy_(rows)

    def slab_of(self, rows: Tensor) -> int:
        """Returns the slab that contains `rows`; any if there are no rows."""
        offset = self.pool.offset_of(rows) if rows.numel() else self.pool.first
        assert offset is not None
        return offset

    def rows_of(self, rows: Tensor, expert_ids: Tensor) -> MoeRows:
        """Describes `rows` [T, D] to the library."""
        tokens, choices = expert_ids.shape
        return MoeRows(rows.data_ptr(), tokens, choices, rows.shape[1], TYPES[rows.dtype])

    def workspace(self, edges: int) -> int:
        """Returns the address of scratch memory for a dispatch of `edges` edges."""
        size = self.library.moe_workspace_bytes(self.num_ranks, self.num_experts, edges)
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._workspace.data_ptr()

    def check_inputs(self, rows: Tensor, expert_ids: Tensor) -> None:
        """Raises KernelError if an operator would read or write out of bounds."""
        if {rows.device, expert_ids.device} != {self.device}:
            raise KernelError(
                f"rows are on {rows.device} and expert ids on {expert_ids.device}; both must be on {self.device} like "
                "the exchange"
            )
        if rows.ndim != 2 or rows.dtype not in TYPES:
            raise KernelError(f"rows are {rows.dtype} {list(rows.shape)}; give [T, D] in float32 or bfloat16")
        if expert_ids.ndim != 2 or expert_ids.dtype != torch.int32:
            raise KernelError(
                f"expert ids are {expert_ids.dtype} {list(expert_ids.shape)}; give [T, K] in int32"
            )

    def issue(self, operation: int, *arguments: Any) -> None:
        """Calls the library for the next operation. Raises PeerTimeoutError, then and at every later call."""
        self.check()
        self.pool.issued += 1
        self._group.threads = torch.get_num_threads()
        answer = enqueue(
            self.library, FUNCTIONS[operation], self.device, ctypes.byref(self._group), *arguments
        )
        if answer == UNSUPPORTED:
            self.pool.issued -= 1
            raise KernelError(f"{OPERATION_NAMES[operation]}: a size beyond what csrc/interface.h allows")
        if answer:
            raise PeerTimeoutError(self._what_failed())

    def _room(self, x: Tensor) -> int:
        """Returns how many rows like those of `x` fit into a slab."""
        return min(self.pool.slab_bytes // max(1, x.shape[1] * x.itemsize), 2**31 - 1)

    def _what_failed(self) -> str:
        failure, operations = self._failure, OPERATION_NAMES
        peer = f"rank {self.names[failure.peer]}"
        operation = f"{operations[failure.operation]} number {failure.epoch}"
        me = f"rank {self.names[self.rank]} of {dist.get_world_size() if dist.is_initialized() else 1}"
        if failure.peer < 0:
            return f"{me} could not launch {operation}: CUDA error {failure.found}"
        if failure.found == GONE:
            return f"{me} stopped waiting: the process of {peer} exited before it reached {operation}"
        if failure.found:
            other = operations[failure.found]
            return f"{me} is at {operation}, but {peer} is at {other}: the ranks do not run the same program"
        return f"{me} timed out after {self._group.timeout_ms / 1000:g} s: {peer} did not reach {operation}"


def _first_slab(library: ctypes.CDLL, num_ranks: int, num_experts: int) -> int:
    """Returns the number of bytes before the first slab: the control block, in whole pages."""
    return -(-library.moe_control_bytes(num_ranks, num_experts) // PAGE) * PAGE
