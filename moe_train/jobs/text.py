"""Makes the path of a job's text absolute, and reports missing text before the job is queued."""

import os
from dataclasses import replace

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.config.schema import Recipe
from moe_train.data.corpora import there

SEES_OUR_FILES = ("local", "slurm")
"""Backends whose nodes share this machine's file systems. Nodes of a Ray cluster may have text that it lacks."""


def anchored(recipe: Recipe) -> Recipe:
    """Returns the recipe with an absolute path of its text: a job may start in another folder."""
    corpus = recipe.data.corpus
    if not isinstance(corpus, FilesCorpusConfig | ParallelFilesCorpusConfig) or not corpus.path:
        return recipe
    path = os.path.abspath(os.path.expanduser(corpus.path))
    return replace(recipe, data=replace(recipe.data, corpus=replace(corpus, path=path)))


def require_text(recipe: Recipe, cluster: str) -> None:
    """Raise DataError if the text of a job on this backend is missing; the job itself checks the content."""
    if cluster in SEES_OUR_FILES:
        there.require_text(recipe.data.corpus)
