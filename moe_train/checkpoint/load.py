"""Fills the tensors of one layout from the boxes of another.

A rank reads only the slices that overlap its own. After loading, the checksum of every expert, summed over ranks by
global id, must equal the one in the manifest, which detects a renumbered or partly loaded expert.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_train.checkpoint.checksum import expert_checksums
from moe_train.checkpoint.layout import Shard, ShardedState, boxes_of, dtype_name, is_held, is_written
from moe_train.checkpoint.manifest import CHECKSUM_MASK, Box, Manifest, TensorEntry, stored_name
from moe_train.errors import CheckpointError
from moe_train.parallel.world import World

SHOWN = 3  # number of mismatches that a message names

Slices = tuple[slice, ...]


def refuse_other_model(manifest: Manifest, target: ShardedState, world: World) -> None:
    """Raises CheckpointError, on all ranks, unless names, shapes and types agree both ways. Collective."""
    wrong = [_mismatch(name, shard, manifest.tensors.get(name)) for name, shard in boxes_of(target)]
    missing = [name for name in manifest.tensors if name not in target]
    gathered = world.gather(([text for text in wrong if text], missing))
    problems = list(dict.fromkeys(text for texts, _ in gathered for text in texts))
    for name in sorted(set.intersection(*(set(names) for _, names in gathered))):
        entry = manifest.tensors[name]
        problems.append(
            f"{name}: is {entry.dtype} {list(entry.shape)} in the checkpoint and not in the model"
        )
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        details = "; ".join(problems[:SHOWN]) + more
        raise CheckpointError(
            f"step {manifest.step}: the checkpoint is of another model ({details}); use the recipe it was saved with, "
            "or another run folder"
        )


def _mismatch(name: str, shard: Shard, entry: TensorEntry | None) -> str | None:
    ours = f"{dtype_name(shard.data)} {list(shard.global_shape)}"
    if entry is None:
        return f"{name}: is {ours} in the model and not in the checkpoint"
    theirs = f"{entry.dtype} {list(entry.shape)}"
    if ours != theirs:
        return f"{name}: is {theirs} in the checkpoint and {ours} in the model"
    if shard.is_expert != (entry.expert_checksums is not None):
        return f"{name}: counts experts in dimension 0 in only one of checkpoint and model"
    return None


def fill(checkpoint: Path, manifest: Manifest, target: ShardedState) -> str | None:
    """Reads this rank's tensors in place; returns an error message, since the other ranks need it too."""
    pieces_by_file: dict[str, list[tuple[str, Slices, Tensor]]] = defaultdict(list)
    for name, shard in boxes_of(target):
        if not is_held(shard):
            continue
        for box in manifest.tensors[name].boxes:
            if (overlap := _overlap(box, shard)) is not None:
                source, destination = overlap
                piece = (stored_name(name, box.part), source, shard.data.detach()[destination])
                pieces_by_file[box.file].append(piece)
    try:
        for file, pieces in pieces_by_file.items():
            _read(checkpoint / file, pieces)
    except (OSError, SafetensorError) as error:
        return f"{checkpoint}: cannot be read although it was verified ({error}); check the disk, then resume"
    return None


def _read(path: Path, pieces: list[tuple[str, Slices, Tensor]]) -> None:
    with torch.no_grad(), safe_open(path, framework="pt") as file:
        for name, source, destination in pieces:
            values = file.get_slice(name)[source] if source else file.get_tensor(name)
            destination.copy_(values)


def _overlap(box: Box, shard: Shard) -> tuple[Slices, Slices] | None:
    """Returns the part that `box` and `shard` share, as slices of each; None if they are disjoint."""
    source, destination = [], []
    for at, size, offset, extent in zip(box.offsets, box.shape, shard.offsets, shard.data.shape, strict=True):
        low, high = max(at, offset), min(at + size, offset + extent)
        if low >= high:
            return None
        source.append(slice(low - at, high - at))
        destination.append(slice(low - offset, high - offset))
    return tuple(source), tuple(destination)


def check_experts(manifest: Manifest, target: ShardedState, world: World) -> None:
    """Raises CheckpointError, on all ranks, if an expert is not the one saved under its global id. Collective."""
    saved = {
        name: entry.expert_checksums for name, entry in manifest.tensors.items() if entry.expert_checksums
    }
    if not saved:
        return
    sums = {name: torch.zeros(len(values), dtype=torch.int64) for name, values in sorted(saved.items())}
    for name, into in sums.items():
        for shard in filter(is_written, target.get(name, ())):
            first = shard.offsets[0]
            into[first : first + shard.data.shape[0]] += torch.tensor(
                expert_checksums(shard.data, shard.offsets)
            )
    total = world.everyone.sum(torch.cat(list(sums.values())).to(world.device)).cpu() & CHECKSUM_MASK
    wrong = _wrong_experts(
        saved, dict(zip(sums, total.split([len(into) for into in sums.values()]), strict=True))
    )
    if wrong:
        raise CheckpointError(
            f"step {manifest.step}: {len(wrong)} experts differ from those saved under their ids, first "
            f"{', '.join(wrong[:SHOWN])}; correct the engine's description of its experts"
        )


def _wrong_experts(saved: Mapping[str, tuple[int, ...]], loaded: Mapping[str, Tensor]) -> list[str]:
    return [
        f"expert {expert} of {name}"
        for name, values in saved.items()
        for expert, (old, new) in enumerate(zip(values, loaded[name].tolist(), strict=True))
        if old != new
    ]
