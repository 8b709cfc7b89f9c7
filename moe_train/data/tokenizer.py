"""Byte-level byte-pair encoding, by Hugging Face's `tokenizers`: any text is encoded and decodes to itself.

Two special tokens come first: `<pad>` (0) and `<eos>` (1), which ends every document. Text that spells a
special token's name is encoded as ordinary text.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from moe_train.config.kinds.data import BPEConfig
from moe_train.errors import DataError

PAD, EOS = "<pad>", "<eos>"
PAD_ID, EOS_ID = 0, 1
SMALLEST_VOCABULARY = 256 + 2
"""Every byte and the special tokens."""


class Tokenizer(Protocol):
    """Text to token ids and back; learned once from a corpus, then kept in one file."""

    def train(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary. Raises DataError if the recipe's size cannot be reached."""

    def longest_word(self, text: str, at_least: int) -> int:
        """Characters of the longest piece of `text` that is learned from as a whole; 0 if fewer than `at_least`."""

    def save(self, file: Path) -> None:
        """Write all that `load` needs."""

    def load(self, file: Path) -> None:
        """Read what `save` wrote. Raises DataError if it is not that."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, each ended by `<eos>`."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens spelt out."""


class BPETokenizer:
    """A tokenizer of exactly `config.vocab_size` entries."""

    def __init__(self, config: BPEConfig) -> None:
        self._config = config
        self._backend = Backend(models.BPE())
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.decoder = decoders.ByteLevel()

    def train(self, texts: Iterable[str]) -> None:
        """Learn merges from pairs that occur at least twice."""
        wanted = self._config.vocab_size
        if wanted < SMALLEST_VOCABULARY:
            raise DataError(
                f"data.tokenizer.vocab_size={wanted}: must be at least {SMALLEST_VOCABULARY} "
                "(256 bytes and 2 special tokens); 4096 suits small corpora"
            )
        trainer = trainers.BpeTrainer(
            vocab_size=wanted,
            min_frequency=2,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._backend.train_from_iterator(texts, trainer)
        reached = self._backend.get_vocab_size()
        if reached != wanted:
            raise DataError(
                f"data.tokenizer.vocab_size={wanted}: the training documents repeat too little for more than "
                f"{reached} entries; set data.tokenizer.vocab_size={reached} or less, or use more text"
            )
        self._encode_special_tokens_as_text()

    def longest_word(self, text: str, at_least: int) -> int:
        """Of runs of letters, of digits, of other marks, or of white space."""
        split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
        words = (word for word in text.split() if len(word) >= at_least)  # quick, and most texts have none
        pieces = [behind - first for word in words for _, (first, behind) in split(word)]
        blanks = map(len, re.findall(rf"\s{{{at_least},}}", text))
        longest = max((*pieces, *blanks), default=0)
        return longest if longest >= at_least else 0

    def save(self, file: Path) -> None:
        """Write the tokenizer as Hugging Face's tokenizer.json."""
        file.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    def load(self, file: Path) -> None:
        """Read a tokenizer.json of this kind and size."""
        try:
            self._backend = Backend.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the backend raises nothing narrower
            raise DataError(f"tokenizer {file}: cannot be read ({error}); build the data again") from None
        found = self._backend.get_vocab_size()
        if found != self._config.vocab_size:
            raise DataError(
                f"data.tokenizer.vocab_size={self._config.vocab_size}: {file} has {found} entries; "
                "use the recipe it was built with"
            )
        self._encode_special_tokens_as_text()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, each ended by `<eos>`; uses all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*encoding.ids, EOS_ID] for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens spelt out."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def _encode_special_tokens_as_text(self) -> None:
        # A setting of the object, not of tokenizer.json: without it, the text "<eos>" would end a document.
        self._backend.encode_special_tokens = True
