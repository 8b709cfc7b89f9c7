"""Reads torch's flight recorder: the last collectives of this worker, and the one that it waits in.

Gloo and NCCL write to it as they start a collective. Imports no torch: it is read only if torch is loaded.
"""

import json
import sys
from collections.abc import Mapping


def recorded_collectives() -> str:
    """Returns the last collectives as JSON; empty without torch."""
    c10d = sys.modules.get("torch._C._distributed_c10d")
    return c10d._dump_fr_trace_json().decode() if c10d is not None else ""


def pending(recorded: str, axes: Mapping[str, str]) -> str | None:
    """Returns the oldest collective that has not ended, as "all_reduce over tensor"; None if there is none.

    `axes` has the axis by the name of its process group. On CUDA the host may already have started later ones.
    """
    entries = json.loads(recorded)["entries"] if recorded else []
    oldest = next((entry for entry in entries if not entry["retired"]), None)
    if oldest is None:
        return None
    group, description = oldest["process_group"]
    kind = str(oldest["profiling_name"]).rpartition(":")[2].strip("_")
    return f"{kind} over {axes.get(group, description)}"
