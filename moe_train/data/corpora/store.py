"""Documents on disk as JSON lines, for sources that must be fetched: fetched once, they need no network.

The file lies in a cache entry (`data/cache.py`), which guards it against half-written and damaged content.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from moe_train.data.corpora.corpus import Document

FILE_NAME = "documents.jsonl"


def write_documents(folder: Path, documents: Iterable[Document]) -> int:
    """Write `documents` below `folder` and return how many there were."""
    count = 0
    with (folder / FILE_NAME).open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps([document.name, document.text]) + "\n")
            count += 1
    return count


def read_documents(folder: Path) -> Iterator[Document]:
    """The documents that `write_documents` put below `folder`, in their order."""
    with (folder / FILE_NAME).open(encoding="utf-8") as file:
        for line in file:
            name, text = json.loads(line)
            yield Document(name, text)
