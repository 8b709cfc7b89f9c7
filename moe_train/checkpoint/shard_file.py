"""Writes and hashes a safetensors file in a single pass.

We do not use the safetensors package for this because the hash must be that of the bytes meant to be written, and
because each chunk releases the interpreter lock while training continues. Any safetensors reader can open the file.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_train.checkpoint.manifest import FileEntry

CHUNK_BYTES = 8 * 2**20
DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_shard_file(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes host tensors under their names and makes them durable; returns size and hash. Raises OSError."""
    # In this order all tensors are aligned.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for chunk in _chunks(ordered):
            digest.update(chunk)
            size += len(chunk)
            while chunk:
                chunk = chunk[file.write(chunk) :]
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def bytes_of(data: Tensor) -> np.ndarray:
    """Returns the memory of a contiguous host tensor."""
    return data.reshape(-1).view(torch.uint8).numpy()


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for tensor in tensors.values():
        content = bytes_of(tensor.detach().contiguous()).data
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
