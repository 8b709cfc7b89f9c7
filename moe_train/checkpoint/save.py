"""Saves a checkpoint: every rank writes its own boxes, then rank 0 commits.

    every rank   step_N.tmp-K/rank-0000r.safetensors, then rank-0000r.json (what it wrote, with hashes)
    rank 0       waits for all reports, checks that every element is covered once, writes manifest.json,
                 renames step_N.tmp-K to step_N (the commit), then writes `latest`
    the others   wait until the temporary folder is gone: renamed, or removed with a note of the reason

Read `rendezvous.py` for how they wait, `shard_file.py` for the files, `manifest.py` for what the reports say.
"""

import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from moe_cluster.atomic import make_durable, replace_content
from moe_train.checkpoint import lineage
from moe_train.checkpoint.checksum import expert_checksums
from moe_train.checkpoint.coverage import coverage_finding
from moe_train.checkpoint.folder import explain, remove, set_aside, write_durably
from moe_train.checkpoint.layout import Shard, ShardedState, dtype_name, is_written
from moe_train.checkpoint.manifest import (
    CHECKSUM_MASK,
    FILE_NAME,
    Box,
    FileEntry,
    Manifest,
    RankReport,
    TensorEntry,
    merge_reports,
    stored_name,
)
from moe_train.checkpoint.rendezvous import Save, await_outcome, await_reports, give_up, raise_if_given_up
from moe_train.checkpoint.shard_file import write_shard_file
from moe_train.errors import CheckpointError

logger = logging.getLogger(__name__)


def run(save: Save, state: ShardedState, meta: Mapping[str, Any]) -> None:
    """Writes this rank's part of a state on the host and waits for the outcome of the save.

    Returns once the checkpoint is committed. Otherwise raises CheckpointError on every rank; then nothing of it is
    left, and earlier checkpoints are unchanged.
    """
    try:
        # Not the folder: rank 0 makes that durable, and may rename it as soon as the last report is there.
        replace_content(save.report(save.rank), _write_part(save, state).to_bytes(), durable=True)
        if save.rank == 0:
            _commit(save, await_reports(save), meta)
    except (OSError, CheckpointError) as error:
        failure = _cause(save, error)
        give_up(save, str(failure))
        raise failure from None
    if save.rank > 0:
        await_outcome(save)


def _cause(save: Save, error: OSError | CheckpointError) -> CheckpointError:
    """Returns the real cause of an error: rank 0, or an attempt that took over, may have removed a file."""
    if isinstance(error, CheckpointError):
        return error
    try:
        lineage.refuse_if_superseded(save.folder.run_dir, save.attempt)
        if save.rank > 0:
            raise_if_given_up(save)
    except CheckpointError as reason:
        return reason
    return explain(error, f"saving step {save.step}", save.temporary)


def _write_part(save: Save, state: ShardedState) -> RankReport:
    save.temporary.mkdir(parents=True, exist_ok=True)
    files: dict[str, FileEntry] = {}
    places: dict[str, str] = {}
    for index, part in enumerate(_split(state, save)):
        suffix = f"-{index:03d}" if index else ""
        file = f"rank-{save.rank:05d}{suffix}.safetensors"
        files[file] = write_shard_file(save.temporary / file, part)
        places |= dict.fromkeys(part, file)
    tensors = {name: _entry(name, shards, places) for name, shards in state.items() if shards}
    return RankReport(save.rank, save.number, files, tensors)


def _split(state: ShardedState, save: Save) -> Iterator[dict[str, Tensor]]:
    """Yields what this rank writes, divided into files of at most `max_file_bytes` or of one larger box."""
    content: dict[str, Tensor] = {}
    size = 0
    for name, shards in state.items():
        for part, shard in enumerate(filter(is_written, shards)):
            if content and size + shard.data.nbytes > save.max_file_bytes:
                yield content
                content, size = {}, 0
            content[stored_name(name, part)] = shard.data
            size += shard.data.nbytes
    if content:
        yield content


def _entry(name: str, shards: Sequence[Shard], places: Mapping[str, str]) -> TensorEntry:
    """Describes what this rank holds of a tensor, at least one box; `places` has the file of each stored name."""
    written = [shard for shard in shards if is_written(shard)]
    boxes = tuple(
        Box(places[stored_name(name, part)], shard.offsets, tuple(shard.data.shape), part)
        for part, shard in enumerate(written)
    )
    shard = shards[0]
    sums = _expert_sums(written) if shard.is_expert else None
    return TensorEntry(dtype_name(shard.data), shard.global_shape, boxes, sums)


def _expert_sums(boxes: Sequence[Shard]) -> tuple[int, ...]:
    """Returns the checksums of the experts that the boxes touch, from the first to the last of them."""
    first = min((box.offsets[0] for box in boxes), default=0)
    sums = [0] * max((box.offsets[0] + box.data.shape[0] - first for box in boxes), default=0)
    for box in boxes:
        for expert, value in enumerate(expert_checksums(box.data, box.offsets), start=box.offsets[0] - first):
            sums[expert] = (sums[expert] + value) & CHECKSUM_MASK
    return tuple(sums)


def _commit(save: Save, reports: list[RankReport], meta: Mapping[str, Any]) -> None:
    files, tensors = merge_reports(reports)
    for name, tensor in tensors.items():
        finding = coverage_finding(tensor.shape, [(box.offsets, box.shape) for box in tensor.boxes])
        if finding:
            raise CheckpointError(
                f"step {save.step} is not saved: {name} {finding}; the engine must describe each element once"
            )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    run = lineage.writer_of(save.folder.run_dir, save.attempt).run
    manifest = Manifest(save.step, save.attempt, save.size, now, _versions(), files, tensors, meta, run)
    write_durably(save.temporary / FILE_NAME, manifest.to_bytes())
    for path in save.temporary.iterdir():
        if path.name not in files and path.name != FILE_NAME:
            remove(path)  # the reports, and leftovers of a failed save of the same step
    make_durable(save.temporary)
    _publish(save)


def _publish(save: Save) -> None:
    """Renames the complete temporary folder to the checkpoint of its step."""
    run_dir, target = save.folder.run_dir, save.folder.committed(save.step)
    lineage.refuse_if_superseded(run_dir, save.attempt)
    if target.exists():
        written_by = lineage.writer(target)
        limits = lineage.limits(run_dir, save.attempt)
        if written_by is not None and lineage.is_eligible(limits, save.step, written_by):
            remove(save.temporary)  # the same step of the same lineage exists already
            return
        aside = set_aside(target, f"fenced-{'unknown' if written_by is None else written_by.attempt}")
        logger.warning("%s does not lead to attempt %d: moved to %s.", target, save.attempt, aside.name)
    os.rename(save.temporary, target)
    make_durable(save.folder.root)
    write_durably(save.folder.latest, f"{target.name}\n".encode())


def _versions() -> dict[str, str]:
    try:
        own = version("moe-train")
    except PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"moe_train": own, "torch": str(torch.__version__), "python": platform.python_version()}
