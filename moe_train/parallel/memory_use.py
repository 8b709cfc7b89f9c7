"""Measures the memory of this process, for the rows of metrics.jsonl."""

import os
import resource
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")


def memory_bytes(device: torch.device) -> int:
    """Returns the peak bytes that torch held on a GPU since the last call; for a CPU, the current resident memory."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        return int(STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the peak so far, in KiB, is what every Unix has
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
