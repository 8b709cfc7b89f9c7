"""What a corpus is: named documents, the same ones in the same order each time they are asked for.

A document is the unit of the split into training and validation, so it should be a text that stands alone: a
file, an article. To add a source: one file beside this one, a dataclass in config/kinds/data.py, a line in
config/registry.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[str], None]
"""Told what is going on, a sentence at a time."""


@dataclass(frozen=True)
class Document:
    """One text. The name is unique in its corpus and does not depend on where the corpus lies."""

    name: str
    text: str


class Corpus(Protocol):
    """A source of documents."""

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Every document once, in a fixed order; called several times while a corpus is built.

        What has to be fetched is kept below `cache_dir`. Raises DataError if the source cannot be read.
        """
