"""Declares the C interface for ctypes, as a copy of `csrc/interface.h`.

ctypes releases the interpreter's lock during a call, so a rank that waits for a peer does not block other threads.
"""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import Any

MAX_RANKS = 64
UNSUPPORTED = 2
GONE = -1
MAX_EXPERTS, MAX_CHOICES = 1024, 8
FLOAT32, BFLOAT16 = 0, 1
SOFTMAX, SIGMOID = 0, 1
DISPATCH, COMBINE, SEND, PULL = 1, 2, 3, 4
OPERATION_NAMES = {0: "none", DISPATCH: "dispatch", COMBINE: "combine", SEND: "send", PULL: "pull"}


class MoeFailure(Structure):
    _fields_ = (("operation", c_int32), ("peer", c_int32), ("epoch", c_uint32), ("found", c_int32))


class MoeGroup(Structure):
    _fields_ = (
        ("ranks", c_int32),
        ("rank", c_int32),
        ("experts", c_int32),
        ("threads", c_int32),
        ("timeout_ms", c_int64),
        ("failure", c_void_p),
        ("segments", c_void_p * MAX_RANKS),
        ("processes", c_int32 * MAX_RANKS),
    )


class MoeRows(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("tokens", c_int32),
        ("choices", c_int32),
        ("width", c_int32),
        ("type", c_int32),
    )


class MoeRouter(Structure):
    _fields_ = (
        ("tokens", c_int32),
        ("experts", c_int32),
        ("choices", c_int32),
        ("score", c_int32),
        ("threads", c_int32),
    )


class MoeCapacity(Structure):
    _fields_ = (
        ("tokens", c_int32),
        ("experts", c_int32),
        ("choices", c_int32),
        ("group_tokens", c_int32),
        ("capacity", c_int32),
        ("threads", c_int32),
    )


_GROUP, _P, _I, _L = POINTER(MoeGroup), c_void_p, c_int32, c_int64
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "moe_control_bytes": (c_int64, [_I, _I]),
    "moe_workspace_bytes": (c_int64, [_I, _I, _I]),
    "moe_dispatch": (c_int, [_GROUP, MoeRows, _P, _L, _I, _P, _P, _P, _P, _P]),
    "moe_send": (c_int, [_GROUP, MoeRows, _P, _P, _P, _L, _P, _P, _P]),
    "moe_pull": (c_int, [_GROUP, MoeRows, _P, _P, _P, _L, _P, _I, _P]),
    "moe_router_workspace_bytes": (c_int64, [MoeRouter]),
    "moe_router_forward": (c_int, [MoeRouter, *[_P] * 11]),
    "moe_router_backward": (c_int, [MoeRouter, *[_P] * 10]),
    "moe_capacity_workspace_bytes": (c_int64, [MoeCapacity]),
    "moe_limit_capacity": (c_int, [MoeCapacity, *[_P] * 7]),
    "moe_balance_loss": (c_int, [_I, _I, *[_P] * 5]),
    "moe_update_bias": (c_int, [_I, c_float, *[_P] * 4]),
    "moe_assign_balanced": (c_int, [*[_I] * 4, *[_P] * 3]),
    "moe_uniform": (c_int, [_I, _L, _I, *[_P] * 4]),
}


def load(path: Path) -> ctypes.CDLL:
    """Opens a built library and declares what it exports."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    return library
