"""Defines a corpus: a source of named documents, the same ones in the same order each time it is read.

A document is the unit of the split into training and validation, so it should be a text that stands alone: a
file, an article. To add a source, add a file beside this one, a dataclass in config/kinds/data.py and a line in
config/registry.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[str], None]
"""Receives progress messages, one sentence each."""


@dataclass(frozen=True)
class Document:
    """Holds one text under a name that is unique in its corpus and does not depend on the corpus's location."""

    name: str
    text: str


class Corpus(Protocol):
    """Provides documents."""

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Yields every document once, in a fixed order; called several times while the tokens are built.

        Downloads are kept below `cache_dir`. Raises DataError if the source cannot be read.
        """
