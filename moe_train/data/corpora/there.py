"""Checks that a corpus of local files exists, without reading it and without torch."""

from moe_train.config.kinds.data import CorpusConfig, FilesCorpusConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.data.corpora import files, parallel_files


def require_text(corpus: CorpusConfig) -> None:
    """Raises DataError if the corpus is files of this machine and they are missing; other kinds are not checked."""
    if isinstance(corpus, FilesCorpusConfig):
        files.require_exists(corpus)
    elif isinstance(corpus, ParallelFilesCorpusConfig):
        parallel_files.require_exists(corpus)
