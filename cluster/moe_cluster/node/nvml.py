"""What NVIDIA's management library tells of the GPUs of this host: which there are, and whether they are sound.

Whatever a GPU or a driver does not tell is null; a host without GPUs or without a driver has none, with the reason.
Tests give pynvml a library of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU; None: it does not tell."""

    index: int
    name: str | None = None
    uuid: str | None = None
    memory_gib: float | None = None
    used_gib: float | None = None
    temperature_c: int | None = None
    slowdown_c: int | None = None
    """Temperature at which it slows itself down."""
    ecc_errors: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    needs_reset: bool | None = None
    """Faulty rows of memory wait for a reset to be replaced."""
    is_worn: bool | None = None
    """Faulty rows of memory could not be replaced."""
    error: str | None = None
    """What NVML said of a GPU that cannot be reached."""


def gpus() -> tuple[list[Gpu], str]:
    """The GPUs of this host, and why there are none, or an empty text."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"no GPU: {error}"
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [_gpu(pynvml, index) for index in range(count)], "" if count else "no GPU: the driver has none"
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        return Gpu(index, error=str(error))

    def told(name: str, *arguments: Any) -> Any:
        return _told(nvml, lambda: getattr(nvml, name)(handle, *arguments))

    rows = told("nvmlDeviceGetRemappedRows")
    return Gpu(
        index=index,
        name=told("nvmlDeviceGetName"),
        uuid=told("nvmlDeviceGetUUID"),
        memory_gib=memory.total / GIB,
        used_gib=memory.used / GIB,
        temperature_c=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        slowdown_c=told("nvmlDeviceGetTemperatureThreshold", nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        ecc_errors=told(
            "nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        needs_reset=bool(rows[2]) if rows is not None else None,
        is_worn=bool(rows[3]) if rows is not None else None,
    )


def _told(nvml: Any, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except nvml.NVMLError:  # not supported by this GPU or this driver
        return None
