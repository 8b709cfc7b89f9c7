"""Reads and writes a checkpoint's manifest: files with sizes and hashes, tensors and the boxes they are cut into.

`manifest.json` carries the sha256 of its own content and must be byte for byte what `to_bytes` writes, so that even a
changed blank is detected. During a save, each rank's part is a `RankReport`. This file does not import torch, since
listing and verifying must be fast.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_train.errors import CheckpointError
from moe_train.identity import Writer

FILE_NAME = "manifest.json"
FORMAT = "moe-train-checkpoint-1"
FORMAT_OF_PARTS = "moe-train-checkpoint-2"
"""Has tensors of which one rank wrote several boxes: a version that knows format 1 only would mistake them."""
CHECKSUM_MASK = (1 << 48) - 1
"""Expert checksums are modulo 2**48: int64 sums over 2**15 ranks do not overflow, JSON keeps them exact."""


@dataclass(frozen=True)
class FileEntry:
    """Describes a file of the checkpoint."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Box:
    """Describes a part of a global tensor; its file has it under `stored_name`."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    part: int = 0
    """Its number among the boxes that its rank wrote of the tensor; the manifest leaves out 0."""


def stored_name(name: str, part: int) -> str:
    """Returns the name under which a file has box number `part` of a tensor: the tensor's own for the first one."""
    return f"{name}#{part}" if part else name


@dataclass(frozen=True)
class TensorEntry:
    """Describes a global tensor, or one rank's part of it."""

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    expert_checksums: tuple[int, ...] | None = None
    """By global expert id (in a rank's report: from its first one on); None if dimension 0 counts no experts."""


@dataclass(frozen=True)
class RankReport:
    """Reports what one rank wrote."""

    rank: int
    save: int
    """Number of the save within its attempt, so that reports of an earlier, failed save are not mistaken for it."""
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]

    def to_bytes(self) -> bytes:
        """Encodes the report as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "RankReport":
        """Returns the inverse of `to_bytes`."""
        data = json.loads(content)
        return cls(data["rank"], data["save"], _files(data["files"]), _tensors(data["tensors"]))


@dataclass(frozen=True)
class Manifest:
    """Describes a committed checkpoint."""

    step: int
    attempt: int
    workers: int
    time: str
    """When it was written, ISO 8601, UTC."""
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    meta: Mapping[str, Any]
    """The trainer's own JSON-ready data."""
    run: str = ""
    """Id of the run; empty in checkpoints of older versions."""

    @property
    def writer(self) -> Writer:
        """Returns the run and attempt that wrote it."""
        return Writer(self.run, self.attempt)

    @property
    def size(self) -> int:
        """Returns the number of bytes of all shard files."""
        return sum(entry.size for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Returns the content of manifest.json, with its digest."""
        data = {"format": self._format(), **dataclasses.asdict(self)}
        for tensor in data["tensors"].values():
            tensor["boxes"] = [_without_first_part(box) for box in tensor["boxes"]]
        return _canonical({**data, "digest": hashlib.sha256(_canonical(data)).hexdigest()})

    def _format(self) -> str:
        has_parts = any(box.part for tensor in self.tensors.values() for box in tensor.boxes)
        return FORMAT_OF_PARTS if has_parts else FORMAT


def read_manifest(checkpoint: Path) -> Manifest:
    """Returns the manifest of a checkpoint folder. Raises CheckpointError if it is missing or damaged."""
    path = checkpoint / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        data = json.loads(content)
        digest = data.pop("digest")
        if hashlib.sha256(_canonical(data)).hexdigest() != digest:
            raise CheckpointError(f"{path}: its content does not match its own digest")
        if _canonical({**data, "digest": digest}) != content:
            raise CheckpointError(
                f"{path}: its bytes differ from what moe-train wrote, though its content is the same"
            )
        if data.pop("format") not in (FORMAT, FORMAT_OF_PARTS):
            raise CheckpointError(
                f"{path}: its format must be {FORMAT} or {FORMAT_OF_PARTS}; load it with the version that wrote it"
            )
        return Manifest(**{**data, "files": _files(data["files"]), "tensors": _tensors(data["tensors"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: is not a manifest of moe-train") from None


def merge_reports(reports: Iterable[RankReport]) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """Merges the reports of all ranks into the checkpoint's files and global tensors.

    Raises CheckpointError if ranks disagree on a tensor's type or shape.
    """
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}
    for report in reports:
        files |= report.files
        for name, part in report.tensors.items():
            tensors[name] = _join(name, report.rank, tensors.get(name), part)
    return files, tensors


def _join(name: str, rank: int, whole: TensorEntry | None, part: TensorEntry) -> TensorEntry:
    is_expert = part.expert_checksums is not None
    if whole is None:
        start = (0,) * part.shape[0] if is_expert else None
        whole = TensorEntry(part.dtype, part.shape, (), start)
    if (whole.dtype, whole.shape, whole.expert_checksums is not None) != (part.dtype, part.shape, is_expert):
        raise CheckpointError(
            f"{name}: is {part.dtype} {list(part.shape)} on rank {rank}, {whole.dtype} {list(whole.shape)} "
            "on an earlier rank; all ranks must describe the same global tensor"
        )
    sums = whole.expert_checksums
    if sums is not None and part.expert_checksums and part.boxes:
        first, added = min(box.offsets[0] for box in part.boxes), part.expert_checksums
        middle = tuple(
            (old + new) & CHECKSUM_MASK
            for old, new in zip(sums[first : first + len(added)], added, strict=False)
        )
        sums = (*sums[:first], *middle, *sums[first + len(added) :])
    return dataclasses.replace(whole, boxes=whole.boxes + part.boxes, expert_checksums=sums)


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False).encode()


def _without_first_part(box: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in box.items() if key != "part" or value}


def _files(data: Mapping[str, Any]) -> dict[str, FileEntry]:
    return {name: FileEntry(entry["size"], entry["sha256"]) for name, entry in data.items()}


def _tensors(data: Mapping[str, Any]) -> dict[str, TensorEntry]:
    return {name: _tensor(entry) for name, entry in data.items()}


def _tensor(entry: Mapping[str, Any]) -> TensorEntry:
    boxes = tuple(
        Box(box["file"], tuple(box["offsets"]), tuple(box["shape"]), box.get("part", 0))
        for box in entry["boxes"]
    )
    sums = entry["expert_checksums"]
    return TensorEntry(entry["dtype"], tuple(entry["shape"]), boxes, None if sums is None else tuple(sums))
