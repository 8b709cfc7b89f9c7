"""Megatron's token files, with megatron-core's own reader and writer as oracle."""

import warnings

import numpy as np
import pytest

from moe_train.data.indexed import IndexedTokens, IndexedWriter, token_dtype
from moe_train.errors import DataError

DOCUMENTS = [[5, 6, 7, 1], [1], [300, 65499, 1]]


@pytest.fixture(scope="module")
def oracle():
    """megatron-core's module; importing it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "megatron.core.datasets.indexed_dataset",
            reason="megatron-core cannot be imported",
            exc_type=ImportError,
        )


def write(prefix, dtype=np.uint16):
    with IndexedWriter(prefix, dtype) as writer:
        for document in DOCUMENTS:
            writer.add(document)


def test_the_bytes_are_those_of_the_format(tmp_path):
    write(tmp_path / "x")
    assert (tmp_path / "x.bin").read_bytes() == np.array([5, 6, 7, 1, 1, 300, 65499, 1], "<u2").tobytes()
    assert (tmp_path / "x.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + (1).to_bytes(8, "little")
        + b"\x08"
        + (3).to_bytes(8, "little")
        + (4).to_bytes(8, "little")
        + np.array([4, 1, 3], "<i4").tobytes()
        + np.array([0, 8, 10], "<i8").tobytes()
        + np.array([0, 1, 2, 3], "<i8").tobytes()
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_what_is_written_is_read_back(tmp_path, dtype):
    write(tmp_path / "x", dtype)
    tokens = IndexedTokens.open(tmp_path / "x")
    assert tokens.tokens.dtype == dtype
    assert tokens.tokens.tolist() == [5, 6, 7, 1, 1, 300, 65499, 1]
    assert [tokens.document(number).tolist() for number in range(tokens.num_documents)] == DOCUMENTS


def test_the_token_type_is_megatrons_choice(oracle):
    for vocab_size in (258, 65499, 65500, 100_000):
        assert token_dtype(vocab_size) is oracle.DType.optimal_dtype(vocab_size)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_reads_what_we_write(tmp_path, oracle, dtype):
    write(tmp_path / "x", dtype)
    theirs = oracle.IndexedDataset(str(tmp_path / "x"))
    assert [theirs[number].tolist() for number in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]


def test_we_read_what_megatron_writes(tmp_path, oracle):
    builder = oracle.IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=np.int32)
    builder.add_document(np.array([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(np.array([6]), [1])
    builder.finalize(str(tmp_path / "x.idx"))
    tokens = IndexedTokens.open(tmp_path / "x")
    assert [tokens.document(number).tolist() for number in range(2)] == [[1, 2, 3, 4, 5], [6]]


def damage_bin(prefix):
    path = prefix.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-2])


def damage_magic(prefix):
    path = prefix.with_suffix(".idx")
    path.write_bytes(b"XX" + path.read_bytes()[2:])


def damage_index(prefix):
    path = prefix.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:-5])


def damage_pointers(prefix):
    path = prefix.with_suffix(".idx")
    content = bytearray(path.read_bytes())
    content[34 + 12 + 8] = 10
    path.write_bytes(content)


def remove_bin(prefix):
    prefix.with_suffix(".bin").unlink()


def empty_bin(prefix):
    prefix.with_suffix(".bin").write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [damage_bin, damage_magic, damage_index, damage_pointers, remove_bin, empty_bin]
)
def test_files_that_do_not_fit_are_refused(tmp_path, damage):
    write(tmp_path / "x")
    damage(tmp_path / "x")
    with pytest.raises(DataError, match=r"token file .*x: .*rebuild it"):
        IndexedTokens.open(tmp_path / "x")
