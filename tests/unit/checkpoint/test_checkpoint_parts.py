"""Coverage, checksums, the manifest and the shard file, each on its own."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from moe_train.checkpoint.checksum import expert_checksums
from moe_train.checkpoint.coverage import coverage_finding
from moe_train.checkpoint.manifest import CHECKSUM_MASK, Box, FileEntry, Manifest, TensorEntry, read_manifest
from moe_train.checkpoint.shard_file import write_shard_file
from moe_train.checkpoint.verify import check_manifest
from moe_train.errors import CheckpointError


@pytest.mark.parametrize(
    ("shape", "boxes", "expected"),
    [
        ((4, 3), [((0, 0), (2, 3)), ((2, 0), (2, 3))], None),
        ((4, 3), [((0, 0), (4, 1)), ((0, 1), (1, 2)), ((1, 1), (3, 2))], None),
        ((), [((), ())], None),
        ((0, 3), [], None),
        ((4, 3), [((0, 0), (2, 3)), ((0, 0), (2, 3))], "written twice, by the boxes at (0, 0) and (0, 0)"),
        ((4, 3), [((0, 0), (3, 3)), ((2, 2), (2, 1))], "written twice"),
        ((4, 3), [((0, 0), (2, 3))], "6 of 12 elements that no rank writes"),
        ((4, 3), [((3, 0), (2, 3))], "exceeds its shape"),
        ((4, 3), [((-1, 0), (2, 3))], "exceeds its shape"),
        ((4, 3), [((0,), (4,))], "another number of dimensions"),
        ((), [((), ()), ((), ())], "written twice"),
    ],
)
def test_every_element_must_be_written_exactly_once(shape, boxes, expected):
    finding = coverage_finding(shape, boxes)
    assert finding is None if expected is None else expected in finding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_checksums_of_boxes_add_up_however_experts_are_cut(dtype):
    data = torch.randn(3, 5, 4, 2).to(dtype)
    whole = expert_checksums(data, (0, 0, 0, 0))
    total = [0, 0, 0]
    for expert in range(3):
        for rows in (slice(0, 2), slice(2, 5)):
            for columns in (slice(0, 3), slice(3, 4)):
                part = data[expert : expert + 1, rows, columns]
                (value,) = expert_checksums(part, (expert, rows.start, columns.start, 0))
                total[expert] = (total[expert] + value) & CHECKSUM_MASK
    assert total == whole


def test_a_checksum_written_out_by_hand():
    ones = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.int32)
    spread = 2 * 0x9E3779B1
    rows = (1 + 2) * 1 + (3 + 4) * 3
    columns = (2 + 4) * spread
    assert expert_checksums(ones, (0, 0, 0)) == [(rows + columns) & CHECKSUM_MASK]
    assert expert_checksums(torch.tensor([5, 7], dtype=torch.int32), (0,)) == [5, 7]


def test_a_checksum_sees_exchanged_rows_columns_and_a_transposition():
    data = torch.randn(1, 4, 4)
    changed = [data.flip(1), data.flip(2), data.transpose(1, 2), data + torch.eye(4) * 1e-6]
    assert len({expert_checksums(value, (0, 0, 0))[0] for value in [data, *changed]}) == 5


def test_a_shard_file_is_what_its_entry_says(tmp_path):
    tensors = {
        "b": torch.randn(3, 5)[:, 1:4],  # not contiguous
        "half": torch.randn(7).to(torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "step": torch.tensor(3.0),
        "count": torch.arange(3),
    }
    path = tmp_path / "rank-00000.safetensors"
    entry = write_shard_file(path, tensors)
    assert entry.size == path.stat().st_size
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.fixture
def manifest():
    tensors = {"w": TensorEntry("float32", (2, 2), (Box("rank-00000.safetensors", (0, 0), (2, 2)),), (1, 2))}
    files = {"rank-00000.safetensors": FileEntry(100, "ab" * 32)}
    return Manifest(3, 1, 1, "2026-01-01T00:00:00+00:00", {}, files, tensors, {"loss": 0.1})


def test_a_manifest_reads_back_as_it_was(tmp_path, manifest):
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"step": 3', b'"step": 4'),
        lambda text: text.replace(b"\n ", b"\n\t", 1),  # reads the same
        lambda text: text + b" ",
        lambda text: text[:-5],
        lambda text: b"",
        lambda text: b"\xff" + text[1:],
        lambda text: b"[]",
        lambda text: text.replace(b'"digest"', b'"digist"'),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path, manifest, change):
    changed = change(manifest.to_bytes())
    assert changed != manifest.to_bytes()
    (tmp_path / "manifest.json").write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_manifest_with_a_hole_or_in_the_wrong_place_is_found(tmp_path, manifest):
    folder = tmp_path / "step_00000005"
    folder.mkdir()
    hole = TensorEntry("float32", (2, 2), (Box("gone.safetensors", (0, 0), (1, 2)),))
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, tensors={"w": hole}).to_bytes())
    _, findings = check_manifest(folder)
    assert [finding.split(": ", 1)[1] for finding in findings] == [
        "is of step 3, but lies in step_00000005",
        "w has 2 of 4 elements that no rank writes",
        "w is in gone.safetensors, which is not among its files",
    ]


def test_a_manifest_is_plain_json(manifest):
    assert json.loads(manifest.to_bytes())["meta"] == {"loss": 0.1}
