"""Reads, writes and selects sentence pairs. A document has one pair per line, its two sides separated by a tab.

A parallel corpus is an ordinary corpus whose documents have that form, so listing, splitting, hashing and caching are
the same as for any text. Which pairs are worth keeping is decided here, in the same way for all sources.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from moe_train.data.corpora.corpus import Document
from moe_train.data.corpora.left_out import LeftOut

LARGEST_RATIO = 3.0
"""Largest ratio of the two sides' numbers of characters; for 90 % of the pairs of Debian's texts it is 0.9 to 1.6."""
SHOWN_CHARACTERS = 40
"""Characters shown of a sentence that serves as an example."""


class Pair(NamedTuple):
    """Holds a sentence or a short paragraph in two languages."""

    source: str
    target: str


def write_pairs(pairs: Iterable[Pair]) -> str:
    """Returns `pairs` as a document's text, with white space as single blanks and without pairs with an empty side."""
    lines = (tuple(" ".join(side.split()) for side in pair) for pair in pairs)
    return "\n".join("\t".join(sides) for sides in lines if all(sides))


def read_pairs(text: str) -> list[Pair]:
    """Returns the pairs of a document's text."""
    return [Pair(*line.split("\t")) for line in text.split("\n") if line]


def swapped(document: Document) -> Document:
    """Returns the document with source and target of each pair exchanged."""
    pairs = (Pair(pair.target, pair.source) for pair in read_pairs(document.text))
    return Document(document.name, write_pairs(pairs))


def select(documents: Iterable[Document], min_words: int, left_out: LeftOut) -> Iterator[Document]:
    """Yields `documents` with the pairs worth keeping, and no document without any.

    A pair is kept if both sides have `min_words` words, differ, and are not too unequal in length. A source sentence
    is kept once, where it first occurs in the whole corpus, so none is in both training and validation. All others are
    counted in `left_out`.
    """
    digests: set[bytes] = set()
    for document in documents:
        pairs = []
        for pair in read_pairs(document.text):
            reason = _unfit(pair, min_words)
            if reason is None and not _is_new(pair.source, digests):
                reason = "pairs whose source sentence occurred before"
            if reason is None:
                pairs.append(pair)
            else:
                left_out.add(reason, f"in {document.name}: {pair.source[:SHOWN_CHARACTERS]!r}")
        if pairs:
            yield Document(document.name, write_pairs(pairs))


def _unfit(pair: Pair, min_words: int) -> str | None:
    """Returns the reason to leave a pair out; None if it is worth learning from."""
    if any(len(side.split()) < min_words for side in pair):
        return f"pairs with a side of fewer than data.corpus.min_words={min_words} words"
    if pair.source == pair.target:
        return "pairs whose sides are equal"
    shorter, longer = sorted(len(side) for side in pair)
    if longer > LARGEST_RATIO * shorter:
        return f"pairs with a side more than {LARGEST_RATIO:g} times as long as the other"
    return None


def _is_new(sentence: str, digests: set[bytes]) -> bool:
    digest = hashlib.sha256(sentence.encode("utf-8")).digest()[:16]
    if digest in digests:
        return False
    digests.add(digest)
    return True
