"""Sentence pairs, and documents of them: a line a pair, its two sides with a tab between.

A parallel corpus is an ordinary corpus whose documents have that form, so that listing, splitting, hashing and caching
are those of any text. Which pairs are worth keeping is decided here, for all sources alike.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from moe_train.data.corpora.corpus import Document
from moe_train.data.corpora.left_out import LeftOut

LARGEST_RATIO = 3.0
"""Of the characters of two sides; of the pairs of Debian's texts 90 % are between 0.9 and 1.6."""
SHOWN_CHARACTERS = 40
"""Of a sentence that is an example."""


class Pair(NamedTuple):
    """A sentence, or a short paragraph, in two languages."""

    source: str
    target: str


def write_pairs(pairs: Iterable[Pair]) -> str:
    """The text of a document of `pairs`: white space in them becomes single blanks; empty sides are left out."""
    lines = (tuple(" ".join(side.split()) for side in pair) for pair in pairs)
    return "\n".join("\t".join(sides) for sides in lines if all(sides))


def read_pairs(text: str) -> list[Pair]:
    """The pairs of a document's text."""
    return [Pair(*line.split("\t")) for line in text.split("\n") if line]


def swapped(document: Document) -> Document:
    """The same pairs for the other direction."""
    pairs = (Pair(pair.target, pair.source) for pair in read_pairs(document.text))
    return Document(document.name, write_pairs(pairs))


def select(documents: Iterable[Document], min_words: int, left_out: LeftOut) -> Iterator[Document]:
    """`documents` with the pairs worth keeping; documents without any are left out.

    A pair counts if both sides have `min_words` words, differ, and are not too unequal in length. A source sentence
    counts once, where it first occurs, in whatever document: so none that is trained on is validated on. All others
    are counted in `left_out`.
    """
    seen: set[bytes] = set()
    for document in documents:
        kept = []
        for pair in read_pairs(document.text):
            why = _unfit(pair, min_words)
            if why is None and not _is_new(pair.source, seen):
                why = "pairs whose source sentence has come before"
            if why is None:
                kept.append(pair)
            else:
                left_out.add(why, f"in {document.name}: {pair.source[:SHOWN_CHARACTERS]!r}")
        if kept:
            yield Document(document.name, write_pairs(kept))


def _unfit(pair: Pair, min_words: int) -> str | None:
    """Why a pair is no translation to learn from; None if it is one."""
    if any(len(side.split()) < min_words for side in pair):
        return f"pairs with a side of fewer than data.corpus.min_words={min_words} words"
    if pair.source == pair.target:
        return "pairs whose sides are equal"
    shorter, longer = sorted(len(side) for side in pair)
    if longer > LARGEST_RATIO * shorter:
        return f"pairs with a side more than {LARGEST_RATIO:g} times as long as the other"
    return None


def _is_new(sentence: str, seen: set[bytes]) -> bool:
    digest = hashlib.sha256(sentence.encode("utf-8")).digest()[:16]
    if digest in seen:
        return False
    seen.add(digest)
    return True
