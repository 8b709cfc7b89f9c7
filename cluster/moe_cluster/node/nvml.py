"""Reads the GPUs of this host and their faults from NVIDIA's management library.

Values that a GPU or a driver does not provide are null; a host without GPUs or a driver has none, with the reason.
Tests replace the library behind pynvml.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Describes one GPU; None: not provided."""

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
    """NVML's error if the GPU cannot be reached."""


def gpus() -> tuple[list[Gpu], str]:
    """Returns the GPUs of this host, and the reason if there are none."""
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

    def value(name: str, *arguments: Any) -> Any:
        return _value(nvml, lambda: getattr(nvml, name)(handle, *arguments))

    rows = value("nvmlDeviceGetRemappedRows")
    return Gpu(
        index=index,
        name=value("nvmlDeviceGetName"),
        uuid=value("nvmlDeviceGetUUID"),
        memory_gib=memory.total / GIB,
        used_gib=memory.used / GIB,
        temperature_c=value("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        slowdown_c=value("nvmlDeviceGetTemperatureThreshold", nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        ecc_errors=value(
            "nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        needs_reset=bool(rows[2]) if rows is not None else None,
        is_worn=bool(rows[3]) if rows is not None else None,
    )


def _value(nvml: Any, query: Callable[[], Any]) -> Any:
    try:
        return query()
    except nvml.NVMLError:  # not supported by this GPU or this driver
        return None
