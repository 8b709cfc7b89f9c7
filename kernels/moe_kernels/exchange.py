"""Exchanges rows between the ranks that share a layer's experts; users of the kernels hold an Exchange.

One exchange serves any number of layers. All ranks issue the same operations in the same order, as with collectives,
in the backward pass too. Read autograd.py for the gradients, ops/ for the operators, slabs.py for the memory.
On CUDA operations are enqueued: those of an exchange, and whatever else touches its rows, must be on one stream or on
streams that wait for each other. A failure is raised by the next operation or by `check`.
T tokens of this rank, K choices, D width, E experts in all, L of this rank, R rows received, C capacity.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from moe_kernels import shared_memory, symmetric_memory
from moe_kernels.autograd import CombineRows, DispatchRows
from moe_kernels.endpoint import CPU, Endpoint, first_slab
from moe_kernels.errors import KernelError
from moe_kernels.library import MAX_RANKS
from moe_kernels.registry import register
from moe_kernels.segments import Segments
from moe_kernels.select import Choice, choose

SLAB_BYTES, NUM_SLABS = 4 << 30, 256
"""Sizes on the CPU: address space, not memory, of 1 TiB for each rank, out of the 128 that a process has."""


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


class Exchange(Endpoint):
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
        super().__init__(
            choice.library,
            segments,
            num_experts=num_experts,
            timeout_s=timeout_s,
            names=names,
            slab_bytes=slab_bytes,
        )
        self.number = register(self)

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
            first = first_slab(choice.library, num_ranks, num_experts)
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

    def _room(self, x: Tensor) -> int:
        """Returns how many rows like those of `x` fit into a slab."""
        return min(self.pool.slab_bytes // max(1, x.shape[1] * x.itemsize), 2**31 - 1)
