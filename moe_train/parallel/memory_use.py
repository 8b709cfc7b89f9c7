"""How much memory this process takes, for the rows of metrics.jsonl."""

import os
import resource
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")


def memory_bytes(device: torch.device) -> int:
    """The most bytes of a GPU that torch held since the last call; for a CPU, the process's resident memory now."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        return int(STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the peak so far, in KiB, is what every Unix has
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
