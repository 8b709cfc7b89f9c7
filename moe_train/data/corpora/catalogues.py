"""gettext catalogues: the messages of a program, in English, with their translations into one language.

.mo files are what programs read, .po files what translators write. Reading them is `polib`'s business.
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
    """The catalogues below `root` that are in `language` by their path: LANGUAGE.po, or in a folder LANGUAGE.

    Sorted by path. A country counts as well: de_DE is de.
    """
    found = find_files(root, EVERYTHING, left_out, lambda name: Path(name).suffix in SUFFIXES)
    return sorted(path for _, path in found if _is_in(path.relative_to(root), language))


def read_catalogue(path: Path) -> Iterator[Pair]:
    """Message and translation of each entry that is translated; of plural forms the first.

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
