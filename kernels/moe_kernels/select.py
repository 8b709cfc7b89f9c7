"""Chooses the library to run, CUDA, the CPU twin or the torch reference, and logs the reason once.

`MOE_KERNELS` in the environment overrides the choice: `reference`, `cpu`, `emulated` or `cuda`.
"""

import ctypes
import functools
import logging
import os
from dataclasses import dataclass

from moe_kernels.build import library_path
from moe_kernels.errors import KernelError
from moe_kernels.library import load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Names what runs on a type of device. Without a library, that is the torch reference."""

    kind: str
    library: ctypes.CDLL | None
    reason: str


@functools.cache
def choose(device_type: str) -> Choice:
    """Returns the fastest available choice for tensors on `device_type`: `cpu` or `cuda`."""
    choice = _choose(device_type, os.environ.get("MOE_KERNELS", ""))
    log.info("kernels on %s: %s, %s", device_type, choice.kind, choice.reason)
    return choice


def _choose(device_type: str, override: str) -> Choice:
    kinds = {"cpu": ("cpu", "emulated", "reference"), "cuda": ("cuda", "reference")}.get(device_type)
    if kinds is None:
        return Choice("reference", None, f"there are no kernels for {device_type}")
    if override and override not in ("reference", "cpu", "emulated", "cuda"):
        raise KernelError(
            f"MOE_KERNELS={override}: must be one of reference, cpu, emulated, cuda; choose one or unset it"
        )
    if override in kinds:
        if override == "reference":
            return Choice("reference", None, "set by MOE_KERNELS")
        return Choice(override, load(library_path(override)), "set by MOE_KERNELS")
    try:
        return Choice(device_type, load(library_path(device_type)), "built for this machine")
    except (KernelError, OSError) as problem:
        return Choice("reference", None, f"because {str(problem).splitlines()[0]}")
