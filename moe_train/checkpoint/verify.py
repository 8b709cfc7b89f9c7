"""Verifies a committed checkpoint: digest, sizes, hashes, coverage. A finding is one sentence.

Of copies that other workers held beside the owner's, which is the one on disk, the manifest has what was found when it
was saved.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from moe_train.checkpoint.coverage import coverage_finding
from moe_train.checkpoint.manifest import FILE_NAME, Manifest, read_manifest
from moe_train.errors import CheckpointError


def verify(checkpoint: Path) -> list[str]:
    """Returns all problems of the checkpoint folder `checkpoint`, none if it is good. Reads every byte."""
    manifest, findings = check_manifest(checkpoint)
    if manifest is None:
        return findings
    return (
        findings + check_files(checkpoint, manifest, manifest.files) + _differing_copies(checkpoint, manifest)
    )


def _differing_copies(checkpoint: Path, manifest: Manifest) -> list[str]:
    differences = manifest.meta.get("copies", {}).get("differences", [])
    return [f"{checkpoint}: when it was saved, {difference}" for difference in differences]


def check_manifest(checkpoint: Path) -> tuple[Manifest | None, list[str]]:
    """Returns the manifest, None if it is unusable, and its problems."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError as error:
        return None, [str(error)]
    return manifest, list(_manifest_findings(checkpoint, manifest))


def _manifest_findings(checkpoint: Path, manifest: Manifest) -> Iterator[str]:
    path = checkpoint / FILE_NAME
    if checkpoint.name != f"step_{manifest.step:08d}":
        yield f"{path}: is of step {manifest.step}, but lies in {checkpoint.name}"
    for name, tensor in manifest.tensors.items():
        finding = coverage_finding(tensor.shape, [(box.offsets, box.shape) for box in tensor.boxes])
        if finding:
            yield f"{path}: {name} {finding}"
        for file in sorted({box.file for box in tensor.boxes} - manifest.files.keys()):
            yield f"{path}: {name} is in {file}, which is not among its files"


def check_files(checkpoint: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Returns the problems of those files of the checkpoint."""
    findings = (_file_finding(checkpoint / name, manifest, name) for name in names)
    return [finding for finding in findings if finding]


def _file_finding(path: Path, manifest: Manifest, name: str) -> str | None:
    expected = manifest.files[name]
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{path}: has {size} bytes, the manifest says {expected.size}"
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if digest != expected.sha256:
        return f"{path}: has sha256 {digest[:12]}..., the manifest says {expected.sha256[:12]}..."
    return None
