"""Reads prose from Debian's documentation packages: essays, manuals, two dictionaries, sayings; about 65 MB in all.

The sources are clearly different domains, so one can see experts specialise. Packages are downloaded once and kept as
text in the cache, with the version and the hash of the .deb; no paragraph occurs twice, in any package.
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
"""Entries of a dictionary that make one document: a dictionary is one file or four, and its entries stand alone."""


@dataclass(frozen=True)
class Source:
    """Describes where a package keeps its prose, relative to its root."""

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
    """Makes a document of each source file, or of consecutive dictionary entries, with one paragraph per line."""

    def __init__(self, config: DebianCorpusConfig) -> None:
        self._packages = config.packages or sorted(SOURCES)

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Yields the packages' documents, in the recipe's order of packages.

        Raises DataError for a package that is unknown or cannot be downloaded.
        """
        for name in self._packages:
            if name not in SOURCES:
                raise DataError(
                    f"data.corpus.packages: {name} is not one of the packages this corpus reads; "
                    f"choose from {', '.join(SOURCES)}"
                )
        digests: set[bytes] = set()
        for name in dict.fromkeys(self._packages):
            folder = cache_dir / "debian" / name
            obtain(folder, partial(_fetch, name, progress), progress)
            for document in read_documents(folder):
                text = "\n".join(line for line in document.text.split("\n") if _is_new(line, digests))
                if text:
                    yield Document(document.name, text)


def read_package(name: str, root: Path) -> Iterator[Document]:
    """Yields the documents of package `name`, unpacked at `root`, in the order of their paths."""
    source = SOURCES[name]
    files = {path.resolve() for pattern in source.patterns for path in root.glob(pattern) if path.is_file()}
    for path in sorted(files):
        relative = path.relative_to(root.resolve())
        if any(part in source.leave_out or part.endswith(source.leave_out) for part in relative.parts):
            continue
        lines = list(paragraphs.paragraphs(source.blocks(_read(path))))
        size = ENTRIES_PER_DOCUMENT if source.is_dictionary else max(len(lines), 1)
        for start in range(0, len(lines), size):
            part = f"#{start // size:04d}" if source.is_dictionary else ""
            yield Document(f"{name}/{relative.as_posix()}{part}", "\n".join(lines[start : start + size]))


def _fetch(name: str, progress: Progress, folder: Path) -> Facts:
    """Fills a cache entry with the text of package `name`."""
    progress(f"fetching Debian package {name}")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = apt.fetch(name, Path(scratch))
        count = write_documents(folder, read_package(name, Path(scratch) / name))
    if count == 0:
        raise DataError(
            f"data.corpus.packages: {name} {package.version} has no text files in the expected folders; "
            "leave the package out with data.corpus.packages=[...]"
        )
    progress(f"read {count} documents from {name} {package.version}")
    return {"package": name, **asdict(package), "licence": SOURCES[name].licence, "documents": count}


def _read(path: Path) -> str:
    """Returns the text of a file, compressed or not. Files that are not UTF-8 are old and in Latin-1."""
    content = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _is_new(paragraph: str, digests: set[bytes]) -> bool:
    digest = hashlib.sha256(paragraph.encode("utf-8")).digest()[:16]
    if digest in digests:
        return False
    digests.add(digest)
    return True
