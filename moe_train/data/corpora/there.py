"""Checks that a corpus of local files exists, without reading it and without torch."""

from moe_train.config.kinds.data import CorpusConfig, FilesCorpusConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.data.corpora import files, parallel_files
from moe_train.errors import DataError


def require_text(corpus: CorpusConfig) -> None:
    """Raises DataError if the corpus is files of this machine and they are missing; other kinds are not checked."""
    if not isinstance(corpus, FilesCorpusConfig | ParallelFilesCorpusConfig):
        return
    try:
        if isinstance(corpus, FilesCorpusConfig):
            files.require_exists(corpus)
        else:
            parallel_files.require_exists(corpus)
    except OSError as error:  # a name that is too long, a folder without permission
        raise DataError(
            f"data.corpus.path={corpus.path}: cannot be read ({error.strerror}); correct the path, or its permissions"
        ) from None
