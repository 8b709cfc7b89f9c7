"""Finds a corpus that is not where its recipe says, without reading it and without torch."""

from moe_train.config.kinds.data import CorpusConfig, FilesCorpusConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.data.corpora import files, parallel_files
from moe_train.errors import DataError


def require_text(corpus: CorpusConfig) -> None:
    """Raise DataError if the corpus is files of this machine and none are there; of other kinds nobody can tell."""
    if not isinstance(corpus, FilesCorpusConfig | ParallelFilesCorpusConfig):
        return
    try:
        if isinstance(corpus, FilesCorpusConfig):
            files.require_there(corpus)
        else:
            parallel_files.require_there(corpus)
    except OSError as error:  # a name that is too long, a folder that is closed to us
        raise DataError(
            f"data.corpus.path={corpus.path}: cannot be read ({error.strerror}); correct the path, or its permissions"
        ) from None
