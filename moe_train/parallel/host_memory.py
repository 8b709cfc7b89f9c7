"""Makes this process keep freed host memory, because the next layer needs the same sizes again.

By default glibc returns large blocks to the kernel at once, and every step maps and zeroes their pages again: 7 to 11%
of an MoE layer on a CPU (docs/benchmarks.md).
"""

import ctypes
import logging

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30
"""Blocks up to this size come from the heap."""
NEVER = -1


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed, for the life of the process; other C libraries are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, NEVER)):
        log.info(
            "This C library has no working mallopt: freed memory returns to the kernel, and steps may be slower."
        )
