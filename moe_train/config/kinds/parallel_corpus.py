"""Defines the options of parallel corpora, which have sentence pairs in two languages: one dataclass per kind."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from moe_train.config.kinds.data import CorpusConfig
from moe_train.config.kinds.facts import Facts
from moe_train.config.problem import Problem

DEBIAN_LANGUAGES = ("de", "fr")
"""Languages that the texts of `parallel_debian` are translated into, all from English."""


@dataclass
class ParallelCorpusConfig(CorpusConfig):
    """Is the base of all parallel corpora."""

    source_language: str = "en"  # what is read
    target_language: str = "de"  # what is written
    min_words: int = 3  # words that both sides of a pair have at least

    parallel: ClassVar[bool] = True

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.source_language == self.target_language:
            yield Problem(
                "data.corpus.target_language",
                self.target_language,
                "must differ from data.corpus.source_language",
                "name the language to translate into",
            )
        if self.min_words < 1:
            yield Problem(
                "data.corpus.min_words", self.min_words, "must be at least 1", "use 3, or 1 for all"
            )


@dataclass
class ParallelDebianCorpusConfig(ParallelCorpusConfig):
    """Reads English with German or French: help texts and programs' messages in Debian packages, by apt-get."""

    kind: str = "parallel_debian"
    sources: list[str] = field(default_factory=list)  # which texts; empty: all that the corpus knows

    @property
    def foreign(self) -> str:
        """Returns the language that is not English."""
        return self.target_language if self.source_language == "en" else self.source_language

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        languages = {self.source_language, self.target_language}
        if "en" not in languages or not languages <= {"en", *DEBIAN_LANGUAGES}:
            yield Problem(
                "data.corpus.target_language",
                self.target_language,
                f"with data.corpus.source_language={self.source_language} is not a pair that these texts have",
                f"use en and one of {', '.join(DEBIAN_LANGUAGES)}, either way round",
            )


@dataclass
class ParallelFilesCorpusConfig(ParallelCorpusConfig):
    """Reads a folder of files NAME.SOURCE and NAME.TARGET with as many lines, and gettext catalogues (.po, .mo)."""

    kind: str = "parallel_files"
    path: str = ""  # the folder

    def check(self, recipe: Facts) -> Iterator[Problem]:
        yield from super().check(recipe)
        if not self.path:
            yield Problem(
                "data.corpus.path", "''", "a parallel corpus needs a folder", "set data.corpus.path"
            )
