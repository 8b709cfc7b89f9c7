"""Aligns a document with its translation by their markup: pure functions from two texts to their pairs.

Translators keep the structure of HTML and Mallard pages: if the elements that are not inline come in the same order in
both, the text blocks between them correspond one to one. If they do not, the page is left out, since a shift by one
block would spoil every pair after it.
"""

from html.parser import HTMLParser

from moe_train.data.corpora.pairs import Pair
from moe_train.data.corpora.paragraphs import INLINE, INLINE_MALLARD, WITHOUT_PROSE

NOT_TRANSLATED = WITHOUT_PROSE | {"info"}
"""Elements that are left out; Mallard's `info` names the translators, so it differs in a translation."""


def align(source: str, target: str) -> list[Pair]:
    """Returns the paired blocks of two pages with the same structure; none if the structures differ."""
    (source_tags, source_blocks), (target_tags, target_blocks) = _structure(source), _structure(target)
    if source_tags != target_tags:
        return []
    pairs = (Pair(*sides) for sides in zip(source_blocks, target_blocks, strict=True))
    return [pair for pair in pairs if pair.source.strip() and pair.target.strip()]


def _structure(text: str) -> tuple[list[str], list[str]]:
    """Returns the borders between a page's blocks, and the text after each."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.tags, reader.blocks


class _Reader(HTMLParser):
    """Collects text between borders; every tag of an element that is not inline is a border."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.blocks: list[str] = []
        self._skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in NOT_TRANSLATED:
            self._skipping.append(tag)
        self._border(tag, tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._border(tag, tag)

    def handle_endtag(self, tag: str) -> None:
        # Some pages omit an inner end tag; the outer one then closes both.
        if tag in self._skipping:
            del self._skipping[self._skipping.index(tag) :]
        self._border(tag, f"/{tag}")

    def handle_data(self, data: str) -> None:
        if not self._skipping and self.blocks:
            self.blocks[-1] += data

    def _border(self, tag: str, label: str) -> None:
        if tag not in INLINE and tag not in INLINE_MALLARD and not self._skipping:
            self.tags.append(label)
            self.blocks.append("")
