"""Extracts prose from documentation formats: pure functions from a file's text to its paragraphs.

A paragraph counts as prose if it has at least 8 words and more than 82 % of it is letters and spaces, which code,
tables, lists of options and menus do not. `debian.py` lists the format of each package.
"""

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

MIN_WORDS = 8
MIN_LETTERS = 0.82
"""Smallest share of letters and spaces in a paragraph of prose."""

INLINE = frozenset(
    {"a", "abbr", "acronym", "b", "big", "cite", "code", "dfn", "em", "font", "i", "kbd", "q", "s", "samp"}
    | {"small", "span", "strong", "sub", "sup", "tt", "u", "var"}
)
"""HTML elements that do not end a paragraph; those of Mallard below."""
INLINE_MALLARD = frozenset({"app", "cmd", "gui", "guiseq", "input", "key", "keyseq", "link", "output", "sys"})
WITHOUT_PROSE = frozenset({"head", "nav", "pre", "screen", "script", "style"})
BLANK_LINES = re.compile(r"\n(?:[ \t\f\r]*\n)+")
RST_NOT_PROSE = re.compile(r"\t|[ ]{4}|\.\. |::|[-=~^+|*#]{3}")
"""Matches the beginning of a reStructuredText block that is code, a directive, a table or a rule."""
DICTIONARY_PRONUNCIATION = re.compile(r"\\[^\\\n]{1,60}\\")


def paragraphs(blocks: Iterable[str]) -> Iterator[str]:
    """Yields the blocks that are prose, each on one line."""
    for block in blocks:
        words = block.split()
        paragraph = " ".join(words)
        if len(words) >= MIN_WORDS and _letters(paragraph) > MIN_LETTERS * len(paragraph):
            yield paragraph


def plain(text: str) -> list[str]:
    """Splits text at blank lines."""
    return BLANK_LINES.split(text)


def html(text: str) -> list[str]:
    """Returns the blocks of HTML, or of the XML dialects of documentation, without navigation and listings."""
    reader = _BlockReader()
    reader.feed(text)
    reader.close()
    return reader.blocks


def restructured_text(text: str) -> list[str]:
    """Returns the blocks that are not indented, without directives, tables and headings' rules."""
    return [block for block in plain(text) if not RST_NOT_PROSE.match(block)]


def fortunes(text: str) -> list[str]:
    """Returns the sayings, which are separated by lines with a percent sign."""
    return re.split(r"^%$", text, flags=re.MULTILINE)


def wordnet(text: str) -> list[str]:
    """Returns the gloss after the bar in each entry. Lines that begin with a space are the licence."""
    entries = (line.partition("|") for line in text.splitlines() if not line.startswith(" "))
    return [gloss for _, bar, gloss in entries if bar]


def gcide(text: str) -> list[str]:
    """Returns the blocks of the dictionary without pronunciations and the braces of cross-references."""
    return plain(DICTIONARY_PRONUNCIATION.sub("", text).replace("{", "").replace("}", ""))


def _letters(paragraph: str) -> int:
    return sum(character.isalpha() or character == " " for character in paragraph)


class _BlockReader(HTMLParser):
    """Collects text; every element that is not inline begins a new block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = [""]
        self._skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in WITHOUT_PROSE:
            self._skipping.append(tag)
        self._border(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._border(tag)

    def handle_endtag(self, tag: str) -> None:
        # Some pages omit an inner end tag; the outer one then closes both.
        if tag in self._skipping:
            del self._skipping[self._skipping.index(tag) :]
        self._border(tag)

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.blocks[-1] += data

    def _border(self, tag: str) -> None:
        if tag not in INLINE and tag not in INLINE_MALLARD and self.blocks[-1]:
            self.blocks.append("")
