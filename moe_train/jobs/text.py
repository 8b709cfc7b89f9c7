"""Where the text of a job lies: found from whatever folder the job starts in, and missed before it is queued."""

import os
from dataclasses import replace

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.config.schema import Recipe
from moe_train.data.corpora import there

SEES_OUR_FILES = ("local", "slurm")
"""Backends whose nodes share this machine's file systems; those of a Ray cluster may hold the text alone."""


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with the path of its text made absolute: a job may start in another folder."""
    corpus = recipe.data.corpus
    if not isinstance(corpus, FilesCorpusConfig | ParallelFilesCorpusConfig) or not corpus.path:
        return recipe
    path = os.path.abspath(os.path.expanduser(corpus.path))
    return replace(recipe, data=replace(recipe.data, corpus=replace(corpus, path=path)))


def require_text(recipe: Recipe, cluster: str) -> None:
    """Raise DataError if the text that a job of this backend reads is not there; whether it is text, the job sees."""
    if cluster in SEES_OUR_FILES:
        there.require_text(recipe.data.corpus)
