"""One rank's end of an exchange, as the operators in ops/ see it: memory that peers read, checks, the library's calls.

exchange.py makes of it what users of the kernels hold.
T tokens of this rank, K choices, D width.
"""

import ctypes
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_kernels.errors import KernelError, PeerTimeoutError
from moe_kernels.launch import enqueue
from moe_kernels.library import (
    BFLOAT16,
    COMBINE,
    DISPATCH,
    FLOAT32,
    GONE,
    OPERATION_NAMES,
    PULL,
    SEND,
    UNSUPPORTED,
    MoeFailure,
    MoeGroup,
    MoeRows,
)
from moe_kernels.segments import Segments
from moe_kernels.slabs import SlabPool

TYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
FUNCTIONS = {DISPATCH: "moe_dispatch", COMBINE: "moe_pull", SEND: "moe_send", PULL: "moe_pull"}
PAGE = 4096
CPU = torch.device("cpu")


class Endpoint:
    """Holds a rank's memory for an exchange. After a failure every later operation raises the same error."""

    number: int
    """By which operators find it: see registry.py."""

    def __init__(
        self,
        library: ctypes.CDLL,
        segments: Segments,
        *,
        num_experts: int,
        timeout_s: float,
        names: list[int],
        slab_bytes: int,
    ):
        self.library, self.rank, self.num_ranks = library, segments.rank, len(segments.addresses)
        self.num_experts, self.num_local = num_experts, num_experts // self.num_ranks
        self.pool = SlabPool(segments, first_slab(library, self.num_ranks, num_experts), slab_bytes)
        self.device = segments.memory.device
        self.control = torch.zeros(1, device=self.device)
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


def first_slab(library: ctypes.CDLL, num_ranks: int, num_experts: int) -> int:
    """Returns the number of bytes before the first slab: the control block, in whole pages."""
    return -(-library.moe_control_bytes(num_ranks, num_experts) // PAGE) * PAGE
