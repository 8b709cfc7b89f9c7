"""Lists the documents of a corpus by name, hash and size, and decides which are for validation.

The split is by document, never by offset, so no text is on both sides. It depends only on names, so the same files
give the same split on every machine.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moe_train.config.schema import DataConfig
from moe_train.data.corpora.corpus import Document
from moe_train.errors import DataError

SALT = b"moe-train validation split 1\0"
FORMAT = 1
"""To be changed whenever the same text and settings would give other tokens."""


@dataclass(frozen=True)
class Listed:
    """Identifies one document by name and content."""

    name: str
    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, document: Document) -> "Listed":
        """Returns the entry of `document`."""
        content = document.text.encode("utf-8")
        return cls(document.name, hashlib.sha256(content).hexdigest(), len(content))


def list_documents(documents: Iterable[Document]) -> list[Listed]:
    """Reads and lists all documents. Raises DataError if there are none, or two with the same name."""
    listing = [Listed.of(document) for document in documents]
    if not listing:
        raise DataError("data.corpus: holds no documents; name another source of text")
    if len({listed.name for listed in listing}) < len(listing):
        raise DataError("data.corpus: two documents have the same name; a corpus must name each differently")
    return listing


def validation_names(listing: Sequence[Listed], validation_fraction: float) -> frozenset[str]:
    """Returns the names of the validation documents: a share of all, chosen by a hash of their names.

    At least one document is on each side of the split. Raises DataError if there is only one.
    """
    if len(listing) < 2:
        raise DataError(
            f"data.validation_fraction={validation_fraction}: a corpus of one document ({listing[0].name}) "
            "cannot be split, because the split is by document; divide it into at least two files"
        )
    share = round(validation_fraction * len(listing))
    count = min(max(share, 1), len(listing) - 1)
    names = sorted((listed.name for listed in listing), key=_draw)
    return frozenset(names[:count])


def fingerprint(listing: Sequence[Listed], config: DataConfig) -> str:
    """Returns a SHA-256 of all that determines the tokens: documents, split and tokenizer, but not the location."""
    settings: dict[str, Any] = {
        "format": FORMAT,
        "validation_fraction": config.validation_fraction,
        "tokenizer": asdict(config.tokenizer),
        "documents": sorted((listed.name, listed.sha256) for listed in listing),
    }
    if config.corpus.parallel:
        settings["parallel"] = True  # as pairs, the same lines give other tokens
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _draw(name: str) -> bytes:
    return hashlib.sha256(SALT + name.encode("utf-8")).digest()
