"""Reads gettext catalogues: a program's English messages with their translations into one language.

Programs read .mo files, translators write .po files; `polib` parses both.
"""

from collections.abc import Iterator
from pathlib import Path

import polib

from moe_train.data.corpora.folder import EVERYTHING, find_files
from moe_train.data.corpora.left_out import LeftOut
from moe_train.data.corpora.pairs import Pair
from moe_train.errors import DataError

SUFFIXES = (".mo", ".po")


def find_catalogues(root: Path, language: str, left_out: LeftOut) -> list[Path]:
    """Returns the catalogues below `root` whose path names `language`: LANGUAGE.po, or a file in a folder LANGUAGE.

    They are sorted by path. A country suffix is allowed: de_DE counts as de.
    """
    catalogues = find_files(root, EVERYTHING, left_out, lambda name: Path(name).suffix in SUFFIXES)
    return sorted(path for _, path in catalogues if _is_in(path.relative_to(root), language))


def read_catalogue(path: Path) -> Iterator[Pair]:
    """Yields message and translation of each translated entry; only the first of its plural forms.

    Raises DataError if the file is not a catalogue.
    """
    try:
        catalogue = polib.mofile(str(path)) if path.suffix == ".mo" else polib.pofile(str(path))
    except (OSError, ValueError, IndexError, polib.struct.error) as error:
        raise DataError(
            f"catalogue {path}: cannot be read ({error}); repair it, or move it out of the corpus"
        ) from None
    for entry in catalogue.translated_entries():
        translation = entry.msgstr_plural.get(0, "") if entry.msgid_plural else entry.msgstr
        yield Pair(entry.msgid, translation)


def _is_in(path: Path, language: str) -> bool:
    return any(
        part == language or part.startswith(f"{language}_") for part in (*path.parent.parts, path.stem)
    )
