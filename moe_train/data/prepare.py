"""Turns a corpus into cached token files: lists and splits it, trains the tokenizer and encodes the text.

Each pass reads the corpus anew instead of keeping it in memory. What a pass reads is checked against the listing, so a
file that changes meanwhile is noticed. `loader.py` reads the token files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_train.config.registry import build
from moe_train.config.schema import DataConfig
from moe_train.data.cache import Facts, obtain
from moe_train.data.corpora.corpus import Corpus, Document, Progress
from moe_train.data.corpora.pairs import read_pairs
from moe_train.data.in_thread import in_thread
from moe_train.data.indexed import IndexedTokens, IndexedWriter, token_dtype
from moe_train.data.listing import Listed, fingerprint, list_documents, validation_names
from moe_train.data.tokenizer import Tokenizer
from moe_train.errors import DataError

BATCH_CHARACTERS = 500_000
"""Characters encoded at a time: enough to keep the cores busy, few enough for memory."""
LONG_WORD = 20_000
"""Number of characters from which on learning a word takes noticeable time."""
COUNTED_TOKENS = 2**22
"""Tokens counted at a time."""


@dataclass(frozen=True)
class PreparedData:
    """Holds a corpus as tokens: two streams, the tokenizer that made them, and what they were made from."""

    folder: Path
    """The cache entry."""
    tokenizer_file: Path
    train: IndexedTokens
    validation: IndexedTokens
    fingerprint: str
    """SHA-256 of documents, split and tokenizer settings: equal if and only if the tokens are equal."""
    num_bytes: int
    """Bytes of text, training and validation."""

    @property
    def num_documents(self) -> int:
        """Documents of the token files, training and validation; in a parallel corpus each is a pair."""
        return self.train.num_documents + self.validation.num_documents

    @property
    def num_tokens(self) -> int:
        """Counts the tokens, training and validation, with one `<eos>` per document, or per side of a pair."""
        return len(self.train.tokens) + len(self.validation.tokens)

    def count_tokens(self, vocabulary: int) -> NDArray[np.int64]:
        """Counts how often each of `vocabulary` tokens occurs in the training text."""
        counts = np.zeros(vocabulary, dtype=np.int64)
        for start in range(0, len(self.train.tokens), COUNTED_TOKENS):
            counts += np.bincount(self.train.tokens[start : start + COUNTED_TOKENS], minlength=vocabulary)
        return counts

    def count_neighbours(self, vocabulary: int, contexts: int) -> NDArray[np.int64]:
        """Counts how often each of `vocabulary` tokens is next to each of the commonest ones in the training text.

        Returns [vocabulary, 2 * n] for the n = min(contexts, vocabulary) commonest: counts of the token before, then
        of the token after. Documents follow each other with an `<eos>` between them. Needs memory for the result and
        for pieces of the text.
        """
        commonest = np.argsort(-self.count_tokens(vocabulary), kind="stable")[:contexts]
        width = 2 * len(commonest)
        before = np.full(vocabulary, -1)
        before[commonest] = np.arange(len(commonest))
        after = np.where(before < 0, -1, before + len(commonest))
        counts = np.zeros(vocabulary * width, dtype=np.int64)
        for start in range(0, len(self.train.tokens) - 1, COUNTED_TOKENS):
            piece = self.train.tokens[start : start + COUNTED_TOKENS + 1].astype(np.int64)
            for tokens, columns in ((piece[1:], before[piece[:-1]]), (piece[:-1], after[piece[1:]])):
                is_common = columns >= 0
                np.add.at(counts, tokens[is_common] * width + columns[is_common], 1)
        return counts.reshape(vocabulary, width)

    @property
    def bytes_per_token(self) -> float:
        """Returns the compression: nats per token divided by it give nats per byte."""
        return self.num_bytes / self.num_tokens


@dataclass(frozen=True)
class Source:
    """Describes a corpus that has been listed but whose tokens need not be built yet."""

    config: DataConfig
    corpus: Corpus
    cache_dir: Path
    listing: Sequence[Listed]
    validation: frozenset[str]
    """Names of the validation documents."""
    fingerprint: str

    @property
    def folder(self) -> Path:
        """Returns the folder of the tokens in the cache."""
        return self.cache_dir / "tokens" / self.fingerprint[:32]

    @property
    def num_bytes(self) -> int:
        """Returns the number of bytes of text."""
        return sum(listed.num_bytes for listed in self.listing)


def find_source(config: DataConfig, cache_dir: Path, progress: Progress) -> Source:
    """Lists the corpus that `config` names. Raises DataError if it cannot be read or split."""
    corpus: Corpus = build("data.corpus", config.corpus)
    listing = list_documents(corpus.documents(cache_dir, progress))
    validation = validation_names(listing, config.validation_fraction)
    return Source(config, corpus, cache_dir, listing, validation, fingerprint(listing, config))


def prepare(config: DataConfig, cache_dir: Path, progress: Progress) -> PreparedData:
    """Returns the tokens of the corpus that `config` names, from the cache if it has them.

    Any number of processes may call this at once. Raises DataError if the corpus cannot be read or split, does not suit
    the tokenizer or changes while it is read, and if the cache cannot be written.
    """
    source = find_source(config, cache_dir, progress)
    build_tokens(source, progress)
    return open_prepared(source)


def build_tokens(source: Source, progress: Progress) -> None:
    """Builds the tokens of `source` in the cache, unless it has them. Raises DataError like `prepare`."""
    obtain(source.folder, lambda folder: _fill(folder, source, progress), progress)


def open_prepared(source: Source) -> PreparedData:
    """Returns the tokens of a source that has been built. Raises DataError if they cannot be read."""
    return PreparedData(
        folder=source.folder,
        tokenizer_file=source.folder / "tokenizer.json",
        train=IndexedTokens.open(source.folder / "train"),
        validation=IndexedTokens.open(source.folder / "validation"),
        fingerprint=source.fingerprint,
        num_bytes=source.num_bytes,
    )


def _fill(folder: Path, source: Source, progress: Progress) -> Facts:
    """Builds the files of the cache entry in `folder`."""
    tokenizer: Tokenizer = build("data.tokenizer", source.config.tokenizer)
    num_train = len(source.listing) - len(source.validation)
    size = source.config.tokenizer.size
    progress(f"learning {size} tokens from {num_train} of {len(source.listing)} documents")
    in_thread(
        lambda: tokenizer.train(_training_texts(source, tokenizer, progress)),
        lambda seconds: progress(f"still learning the tokens after {seconds:.0f} s"),
    )
    tokenizer.save(folder / "tokenizer.json")
    with (
        IndexedWriter(folder / "train", token_dtype(size)) as train,
        IndexedWriter(folder / "validation", token_dtype(size)) as validation,
    ):
        for document, sequences in _encode(source, tokenizer, progress):
            (validation if document.name in source.validation else train).add(*sequences)
    return {"documents": len(source.listing), "bytes": source.num_bytes, "fingerprint": source.fingerprint}


def _training_texts(source: Source, tokenizer: Tokenizer, progress: Progress) -> Iterator[str]:
    """Yields the texts that the tokenizer learns from, and reports at the end if learning will take long."""
    longest = 0, ""
    for document in _read(source):
        if document.name not in source.validation:
            for text in chain.from_iterable(_units(source, document)):
                longest = max(longest, (tokenizer.longest_word(text, LONG_WORD), document.name))
                yield text
    if longest[0]:
        progress(
            f"document {longest[1]} has a word of {longest[0]:,} characters, and the time to learn the tokens grows "
            "with the square of a word's length; if it takes too long, insert blanks or line breaks into the text"
        )


def _units(source: Source, document: Document) -> Sequence[tuple[str, ...]]:
    """Returns what become documents of the token file: the whole text or, in a parallel corpus, each pair."""
    return read_pairs(document.text) if source.config.corpus.parallel else [(document.text,)]


def _encode(
    source: Source, tokenizer: Tokenizer, progress: Progress
) -> Iterator[tuple[Document, list[list[int]]]]:
    """Yields each unit's document and tokens, in order; reports progress at every tenth."""
    total = sum(listed.num_bytes for listed in source.listing)
    done = tenths = 0
    for documents in _batches(_read(source)):
        units = [(doc, unit) for doc in documents for unit in _units(source, doc)]
        texts = [text for _, unit in units for text in unit]
        encoded = iter(in_thread(partial(tokenizer.encode, texts)))
        yield from ((doc, list(islice(encoded, len(unit)))) for doc, unit in units)
        done += sum(len(doc.text.encode("utf-8")) for doc in documents)
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            progress(f"encoded {done / 1e6:.1f} of {total / 1e6:.1f} MB")


def _read(source: Source) -> Iterator[Document]:
    """Yields the documents again, which must match the listing; what is left out was reported the first time."""
    documents = source.corpus.documents(source.cache_dir, lambda _: None)
    for listed, document in zip_longest(source.listing, documents):
        if document is None or listed != Listed.of(document):
            raise DataError(
                f"data.corpus: document {(listed or document).name} changed while the corpus was read; "
                "start again when no process writes to the corpus"
            )
        yield document


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Groups documents into batches of about BATCH_CHARACTERS."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
