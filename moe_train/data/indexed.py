"""Writes token files in Megatron's .bin/.idx format (MMIDIDX, version 1) in one pass, and maps them into memory.

PREFIX.bin contains the tokens of all sequences one after the other; PREFIX.idx says where each sequence begins and
which sequences make a document. We do not use megatron-core's module because importing it takes seconds; a test checks
that each reads the other's files.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from moe_train.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, type[np.integer]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
"""Megatron's codes for the integer types."""
HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the token type, sequences, document borders
LARGEST_UINT16_VOCABULARY = 65500
"""Megatron's own limit, slightly below 65536."""


def token_dtype(vocab_size: int) -> type[np.integer]:
    """Returns the type in which Megatron stores the tokens of a vocabulary of this size."""
    return np.uint16 if vocab_size < LARGEST_UINT16_VOCABULARY else np.int32


class IndexedWriter:
    """Writes PREFIX.bin document by document, and PREFIX.idx on leaving its context without an error."""

    def __init__(self, prefix: Path, dtype: type[np.integer]) -> None:
        self._index_path = prefix.with_name(prefix.name + ".idx")
        self._dtype = dtype
        self._lengths: list[int] = []
        self._borders = [0]
        self._tokens = prefix.with_name(prefix.name + ".bin").open("wb")

    def add(self, *sequences: list[int]) -> None:
        """Appends one document of one or more sequences, each of at least one token."""
        for tokens in sequences:
            self._tokens.write(np.asarray(tokens, dtype=self._dtype).tobytes())
            self._lengths.append(len(tokens))
        self._borders.append(len(self._lengths))

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        if kind is None:
            self._write_index()

    def _write_index(self) -> None:
        lengths = np.asarray(self._lengths, dtype=np.int32)
        borders = np.asarray(self._borders, dtype=np.int64)
        code = next(code for code, dtype in DTYPES.items() if dtype is self._dtype)
        with self._index_path.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, code, len(lengths), len(borders)))
            for part in (lengths, _pointers(lengths, np.dtype(self._dtype).itemsize), borders):
                file.write(part.tobytes())


@dataclass(frozen=True)
class IndexedTokens:
    """Holds the tokens of a stream of documents, mapped into memory: nothing is read before it is used."""

    tokens: NDArray[np.integer]
    """All tokens, one document after the other; read-only."""
    sequence_lengths: NDArray[np.int32]
    """Tokens of each sequence."""
    document_indices: NDArray[np.int64]
    """Document d is the sequences from document_indices[d] up to but not including document_indices[d + 1]."""

    @classmethod
    def open(cls, prefix: Path) -> "IndexedTokens":
        """Maps PREFIX.bin and PREFIX.idx.

        Raises DataError if they are missing, in another format, of inconsistent sizes, or without tokens.
        """
        try:
            index = prefix.with_name(prefix.name + ".idx").read_bytes()
            dtype, lengths, borders = _parse_index(index)
            tokens = np.memmap(prefix.with_name(prefix.name + ".bin"), dtype=dtype, mode="r")
        except (OSError, ValueError, struct.error) as error:
            raise DataError(f"token file {prefix}: cannot be read ({error}); rebuild it") from None
        expected = int(lengths.sum(dtype=np.int64))
        if len(tokens) != expected:
            raise DataError(
                f"token file {prefix}: .bin has {len(tokens)} tokens but .idx says {expected}; rebuild it"
            )
        return cls(tokens, lengths, borders)

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        return len(self.document_indices) - 1

    def document(self, number: int) -> NDArray[np.integer]:
        """Returns the tokens of one document."""
        ends = np.concatenate(([0], np.cumsum(self.sequence_lengths, dtype=np.int64)))
        first, end = self.document_indices[number : number + 2]
        return self.tokens[ends[first] : ends[end]]


def _pointers(lengths: NDArray[np.int32], itemsize: int) -> NDArray[np.int64]:
    """Returns the offset of each sequence in the .bin file, in bytes."""
    ends = np.cumsum(lengths, dtype=np.int64) * itemsize
    return np.concatenate((np.zeros(1, dtype=np.int64), ends))[: len(lengths)]


def _parse_index(index: bytes) -> tuple[type[np.integer], NDArray[np.int32], NDArray[np.int64]]:
    """Returns token type, sequence lengths and document borders. Raises ValueError or struct.error on other formats."""
    magic, version, code, num_sequences, num_borders = HEADER.unpack_from(index)
    if magic != MAGIC or version != VERSION or code not in DTYPES:
        raise ValueError(f"its index starts with {magic!r}, version {version}, token type {code}")
    after_lengths = HEADER.size + 4 * num_sequences
    if len(index) < after_lengths + 8 * num_sequences + 8 * num_borders:
        raise ValueError(f"its index ends after {len(index)} bytes")
    lengths = np.frombuffer(index, dtype=np.int32, count=num_sequences, offset=HEADER.size)
    pointers = np.frombuffer(index, dtype=np.int64, count=num_sequences, offset=after_lengths)
    borders = np.frombuffer(
        index, dtype=np.int64, count=num_borders, offset=after_lengths + 8 * num_sequences
    )
    if not np.array_equal(pointers, _pointers(lengths, np.dtype(DTYPES[code]).itemsize)):
        raise ValueError("there are gaps between its sequences")
    return DTYPES[code], lengths, borders
