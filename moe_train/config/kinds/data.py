"""Defines the sections `data.corpus` and `data.tokenizer`: one dataclass per kind; see kind.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from moe_train.config.kinds.facts import Facts
from moe_train.config.kinds.kind import KindConfig
from moe_train.config.problem import Problem


@dataclass
class CorpusConfig(KindConfig):
    """Is the base of all corpora."""

    parallel: ClassVar[bool] = False
    """Whether its documents are sentence pairs in two languages."""


@dataclass
class FilesCorpusConfig(CorpusConfig):
    """Reads text files below a folder, or matching a glob; null: the running Python's own standard library."""

    kind: str = "files"
    path: str | None = None  # a folder, a file, or a glob such as docs/**/*.md
    suffixes: list[str] = field(default_factory=lambda: [".txt", ".md", ".rst", ".py"])  # for folders


@dataclass
class DebianCorpusConfig(CorpusConfig):
    """Reads prose from Debian's documentation packages, downloaded with apt-get (about 65 MB of text)."""

    kind: str = "debian"
    packages: list[str] = field(default_factory=list)  # empty: all known packages


@dataclass
class HuggingFaceCorpusConfig(CorpusConfig):
    """Streams a data set from the Hugging Face hub, or reads one in a local folder."""

    kind: str = "huggingface"
    path: str = ""  # e.g. allenai/c4, or a folder
    name: str | None = None  # configuration of the data set
    split: str = "train"
    text_field: str = "text"
    max_documents: int | None = None  # null: all

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if not self.path:
            yield Problem(
                "data.corpus.path", "''", "must name a data set or a folder", "set data.corpus.path"
            )


@dataclass
class TokenizerConfig(KindConfig):
    """Is the base of all tokenizers."""

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        raise AssertionError("every kind of tokenizer must define its size")


@dataclass
class BPEConfig(TokenizerConfig):
    """Trains byte-level byte-pair encoding on the training files."""

    kind: str = "bpe"
    vocab_size: int = 4096

    @property
    def size(self) -> int:
        return self.vocab_size

    def check(self, recipe: Facts) -> Iterator[Problem]:
        if self.vocab_size < 258:
            yield Problem(
                "data.tokenizer.vocab_size",
                self.vocab_size,
                "must be at least 258 for the 256 bytes and 2 special tokens",
                "raise it; 4096 suits small corpora",
            )
