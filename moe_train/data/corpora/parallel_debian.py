"""Reads English with its German or French translation from Debian packages: help texts and programs' messages.

Help texts are HTML or Mallard pages that are aligned by their structure (`alignment.py`); messages are gettext
catalogues. Packages are downloaded once and kept as pairs in the cache, with the version and hash of each .deb. The
domain is software, so results compare recipes with each other but say little about other text.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from moe_train.config.kinds.parallel_corpus import ParallelDebianCorpusConfig
from moe_train.data.cache import Facts, obtain
from moe_train.data.corpora import apt
from moe_train.data.corpora.alignment import align
from moe_train.data.corpora.catalogues import find_catalogues, read_catalogue
from moe_train.data.corpora.corpus import Document, Progress
from moe_train.data.corpora.left_out import LeftOut
from moe_train.data.corpora.pairs import select, swapped, write_pairs
from moe_train.data.corpora.store import read_documents, write_documents
from moe_train.errors import DataError

CATALOGUES = "usr/share/locale"


@dataclass(frozen=True)
class Help:
    """Describes English pages and their translations, whose paths differ in one part; `{}` is the language."""

    packages: tuple[str, str]
    pages: str
    """Pattern of the English paths below the package's root."""
    part: tuple[str, str]
    """The English part of a path, and its replacement in the translation's path."""
    licence: str


SOURCES: dict[str, Help | str] = {
    "debian-handbook": Help(
        ("debian-handbook", "debian-handbook"),
        "usr/share/doc/debian-handbook/html/en-US/*.html",
        ("/en-US/", "/{}-*/"),
        "GPL-2+ or CC-BY-SA-3.0",
    ),
    "debian-reference": Help(
        ("debian-reference-en", "debian-reference-{}"),
        "usr/share/debian-reference/*.en.html",
        (".en.", ".{}."),
        "GPL-2+",
    ),
    "gnome-user-docs": Help(
        ("gnome-user-docs", "gnome-user-docs"),
        "usr/share/help/C/**/*.page",
        ("/C/", "/{}/"),
        "CC-BY-SA-3.0",
    ),
    "libreoffice-help": Help(
        ("libreoffice-help-en-us", "libreoffice-help-{}"),
        "usr/share/libreoffice/help/en-US/**/*.html",
        ("/en-US/", "/{}/"),
        "MPL-2.0",
    ),
    "coreutils": "GPL-3+",
    "dpkg": "GPL-2+",
    "e2fsprogs-l10n": "GPL-2",
    "evolution-common": "LGPL-3",
    "gcc-12-locales": "GPL-3+",
    "gettext": "GPL-3+",
    "git": "GPL-2",
    "gnucash-common": "GPL-2+",
    "gnumeric-common": "GPL-2 or GPL-3",
    "gnupg-l10n": "GPL-3+",
    "krita-l10n": "GPL-3+",
    "libc-l10n": "LGPL-2.1+",
    "libgtk-3-common": "LGPL-2+",
    "util-linux-locales": "GPL-2+",
    "vlc-l10n": "GPL-2+",
}
"""Help texts, and for packages with catalogues their licence."""


class ParallelDebianCorpus:
    """Makes each page of a help text, and each catalogue, a document."""

    def __init__(self, config: ParallelDebianCorpusConfig) -> None:
        self._config = config

    def documents(self, cache_dir: Path, progress: Progress) -> Iterator[Document]:
        """Yields the documents of each source, in the recipe's order of sources.

        Raises DataError for a source that is unknown or cannot be downloaded.
        """
        names = list(dict.fromkeys(self._config.sources or sorted(SOURCES)))
        for name in names:
            if name not in SOURCES:
                raise DataError(
                    f"data.corpus.sources: {name} is not one of the sources this corpus reads; "
                    f"choose from {', '.join(SOURCES)}"
                )
        return self._selected(names, cache_dir, progress)

    def _selected(self, names: Sequence[str], cache_dir: Path, progress: Progress) -> Iterator[Document]:
        left_out = LeftOut()
        documents: Iterator[Document] = (
            document for name in names for document in self._documents_of(name, cache_dir, progress, left_out)
        )
        if self._config.target_language == "en":
            documents = map(swapped, documents)
        yield from select(documents, self._config.min_words, left_out)
        left_out.report(progress)

    def _documents_of(
        self, name: str, cache_dir: Path, progress: Progress, left_out: LeftOut
    ) -> Iterator[Document]:
        language = self._config.foreign
        folder = cache_dir / "parallel" / f"{name}-en-{language}"
        facts = obtain(folder, partial(_fetch, name, language, progress), progress)
        left_out.extend(facts.get("left_out", {}))
        return read_documents(folder)


def read_source(name: str, language: str, roots: tuple[Path, Path], left_out: LeftOut) -> Iterator[Document]:
    """Yields the documents of a source, English with `language`, in the order of their paths.

    `roots` are the folders where the English package and the other language's package are unpacked.
    """
    source = SOURCES[name]
    if isinstance(source, str):
        folder = roots[1] / CATALOGUES
        for path in find_catalogues(folder, language, left_out) if folder.is_dir() else ():
            yield Document(f"{name}/{path.stem}", write_pairs(read_catalogue(path)))
        return
    for path in sorted(roots[0].glob(source.pages)):
        relative = path.relative_to(roots[0]).as_posix()
        translated = relative.replace(source.part[0], source.part[1].format(language))
        translations = sorted(roots[1].glob(translated))[:1]
        if not translations:
            left_out.add("pages without a translation", f"{name}/{relative}")
        for translation in translations:
            pairs = align(
                *(page.read_text(encoding="utf-8", errors="replace") for page in (path, translation))
            )
            if not pairs:
                left_out.add("pages whose translation has another structure", f"{name}/{relative}")
            yield Document(f"{name}/{relative}", write_pairs(pairs))


def _fetch(name: str, language: str, progress: Progress, folder: Path) -> Facts:
    """Fills a cache entry with the pairs of source `name`."""
    source = SOURCES[name]
    names = (name, name) if isinstance(source, str) else source.packages
    english, foreign = (package.format(language) for package in names)
    packages: dict[str, apt.Package] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for package in dict.fromkeys((english, foreign)):
            progress(f"fetching Debian package {package}")
            packages[package] = apt.fetch(package, Path(scratch))
        roots = (Path(scratch) / english, Path(scratch) / foreign)
        left_out = LeftOut()
        count = write_documents(
            folder, (doc for doc in read_source(name, language, roots, left_out) if doc.text)
        )
    if count == 0:
        raise DataError(
            f"data.corpus.sources: {name} has no pairs of en and {language} in the expected folders (packages "
            f"{', '.join(f'{key} {value.version}' for key, value in packages.items())}); "
            "leave it out with data.corpus.sources=[...]"
        )
    progress(f"read {count} documents from {name}")
    return {
        "source": name,
        "language": language,
        "packages": {key: asdict(package) for key, package in packages.items()},
        "licence": source if isinstance(source, str) else source.licence,
        "documents": count,
        "left_out": left_out.as_dict(),
    }
