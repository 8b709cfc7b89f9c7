"""Prose from Debian's documentation packages: essays, manuals, two dictionaries, sayings; about 65 MB in all.

Sources differ clearly by domain, which shows in what experts specialise on. Packages are fetched once and
kept as text in the cache, with the version and the hash of the .deb; paragraphs are unique over all packages.
"""

import gzip
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from moe_train.config.kinds.data import DebianCorpusConfig
from moe_train.data.cache import Facts, obtain
from moe_train.data.corpora import apt, paragraphs
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.store import read_documents, write_documents
from moe_train.errors import DataError

ENTRIES_PER_DOCUMENT = 1000
"""A dictionary is a file or four; its entries stand alone, so a document is so many of them."""


@dataclass(frozen=True)
class Source:
    """Where a package keeps its prose, below its root."""

    patterns: tuple[str, ...]
    blocks: Callable[[str], list[str]]
    licence: str
    leave_out: tuple[str, ...] = ()
    """Parts of a path, or endings of a name, that are not English prose."""
    is_dictionary: bool = False


SOURCES = {
    "anarchism": Source(("usr/share/doc/anarchism/**/*.html",), paragraphs.html, "GPL-2"),
    "debian-handbook": Source(
        ("usr/share/doc/debian-handbook/**/en-US/*.html",), paragraphs.html, "GPL-2+ or CC-BY-SA-3.0"
    ),
    "debian-reference-en": Source(("usr/share/debian-reference/*.en.html",), paragraphs.html, "GPL-2+"),
    "dict-gcide": Source(("usr/share/dictd/gcide.dict.dz",), paragraphs.gcide, "GPL-2+", is_dictionary=True),
    "fortunes": Source(
        ("usr/share/games/fortunes/*",),
        paragraphs.fortunes,
        "BSD; quotations belong to their authors",
        leave_out=(".dat", ".u8"),
    ),
    "gnome-user-docs": Source(("usr/share/help/C/**/*.page",), paragraphs.html, "CC-BY-SA-3.0"),
    "installation-guide-amd64": Source(
        ("usr/share/doc/installation-guide-amd64/en/*.html",), paragraphs.html, "GPL-2"
    ),
    "libreoffice-help-en-us": Source(("usr/**/en-US/**/*.html",), paragraphs.html, "MPL-2.0"),
    "linux-doc-6.1": Source(
        tuple(
            f"usr/share/doc/linux-doc-6.1/Documentation/**/*.{suffix}"
            for suffix in ("rst", "rst.gz", "txt", "txt.gz")
        ),
        paragraphs.restructured_text,
        "GPL-2",
        leave_out=("translations",),
    ),
    "wordnet-base": Source(
        ("usr/share/wordnet/data.*",), paragraphs.wordnet, "WordNet 3.0", is_dictionary=True
    ),
}


class DebianCorpus:
    """A document is a source file of a package, or a run of a dictionary's entries; one paragraph a line."""

    def __init__(self, config: DebianCorpusConfig) -> None:
        self._packages = config.packages or sorted(SOURCES)

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """The packages' documents, in the recipe's order of packages.

        Raises DataError for a package that the corpus does not know or that cannot be fetched.
        """
        for name in self._packages:
            if name not in SOURCES:
                raise DataError(
                    f"data.corpus.packages: {name} is not a package this corpus can read; "
                    f"choose from {', '.join(SOURCES)}"
                )
        seen: set[bytes] = set()
        for name in dict.fromkeys(self._packages):
            folder = cache_dir / "debian" / name
            obtain(folder, partial(_fetch, name, progress), progress)
            for document in read_documents(folder):
                text = "\n".join(line for line in document.text.split("\n") if _is_new(line, seen))
                if text:
                    yield Document(document.name, text)


def read_package(name: str, root: Path) -> Iterator[Document]:
    """The documents of package `name`, unpacked at `root`, in the order of their paths."""
    source = SOURCES[name]
    files = {path.resolve() for pattern in source.patterns for path in root.glob(pattern) if path.is_file()}
    for path in sorted(files):
        relative = path.relative_to(root.resolve())
        if any(part in source.leave_out or part.endswith(source.leave_out) for part in relative.parts):
            continue
        found = list(paragraphs.paragraphs(source.blocks(_read(path))))
        size = ENTRIES_PER_DOCUMENT if source.is_dictionary else max(len(found), 1)
        for start in range(0, len(found), size):
            part = f"#{start // size:04d}" if source.is_dictionary else ""
            yield Document(f"{name}/{relative.as_posix()}{part}", "\n".join(found[start : start + size]))


def _fetch(name: str, progress: Progress, folder: Path) -> Facts:
    """Fill a cache entry with the text of package `name`."""
    progress(f"fetching Debian package {name}")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = apt.fetch(name, Path(scratch))
        count = write_documents(folder, read_package(name, Path(scratch) / name))
    if count == 0:
        raise DataError(
            f"data.corpus.packages: {name} {package.version} holds no prose where it is looked for; "
            "leave the package out with data.corpus.packages=[...]"
        )
    progress(f"read {count} documents from {name} {package.version}")
    return {"package": name, **asdict(package), "licence": SOURCES[name].licence, "documents": count}


def _read(path: Path) -> str:
    """The text of a file, compressed or not. Old documents that are not UTF-8 are Latin-1."""
    content = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _is_new(paragraph: str, seen: set[bytes]) -> bool:
    digest = hashlib.sha256(paragraph.encode("utf-8")).digest()[:16]
    if digest in seen:
        return False
    seen.add(digest)
    return True
