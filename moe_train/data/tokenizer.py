"""Encodes text by byte-level byte-pair encoding with Hugging Face's `tokenizers`; decoding restores any text exactly.

Two special tokens come first: `<pad>` (0) and `<eos>` (1), which ends every document. Text that spells the name of a
special token is encoded as ordinary text.
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
    """Converts text to token ids and back; trained once on a corpus, then kept in one file."""

    def train(self, texts: Iterable[str]) -> None:
        """Learns the vocabulary. Raises DataError if the recipe's size cannot be reached."""

    def longest_word(self, text: str, at_least: int) -> int:
        """Returns the length of the longest piece of `text` that is learned as a whole; 0 if below `at_least`."""

    def save(self, file: Path) -> None:
        """Writes everything that `load` needs."""

    def load(self, file: Path) -> None:
        """Reads what `save` wrote. Raises DataError for any other file."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, each ended by `<eos>`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, including the names of special tokens."""


class BPETokenizer:
    """Implements a tokenizer of exactly `config.vocab_size` entries."""

    def __init__(self, config: BPEConfig) -> None:
        self._config = config
        self._backend = Backend(models.BPE())
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.decoder = decoders.ByteLevel()

    def train(self, texts: Iterable[str]) -> None:
        """Learns merges from pairs that occur at least twice."""
        vocab_size = self._config.vocab_size
        if vocab_size < SMALLEST_VOCABULARY:
            raise DataError(
                f"data.tokenizer.vocab_size={vocab_size}: must be at least {SMALLEST_VOCABULARY} "
                "(256 bytes and 2 special tokens); 4096 suits small corpora"
            )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._backend.train_from_iterator(texts, trainer)
        num_entries = self._backend.get_vocab_size()
        if num_entries != vocab_size:
            raise DataError(
                f"data.tokenizer.vocab_size={vocab_size}: the training documents repeat too little for more than "
                f"{num_entries} entries; set data.tokenizer.vocab_size={num_entries} or less, or use more text"
            )
        self._encode_special_tokens_as_text()

    def longest_word(self, text: str, at_least: int) -> int:
        """Returns the length of the longest run of letters, of digits, of other marks, or of white space."""
        split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
        words = (word for word in text.split() if len(word) >= at_least)  # fast, and most texts have none
        pieces = [end - first for word in words for _, (first, end) in split(word)]
        blanks = map(len, re.findall(rf"\s{{{at_least},}}", text))
        longest = max((*pieces, *blanks), default=0)
        return longest if longest >= at_least else 0

    def save(self, file: Path) -> None:
        """Writes the tokenizer as Hugging Face's tokenizer.json."""
        file.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    def load(self, file: Path) -> None:
        """Reads a tokenizer.json of this kind and size."""
        try:
            self._backend = Backend.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the backend raises nothing narrower
            raise DataError(f"tokenizer {file}: cannot be read ({error}); rebuild the data") from None
        num_entries = self._backend.get_vocab_size()
        if num_entries != self._config.vocab_size:
            raise DataError(
                f"data.tokenizer.vocab_size={self._config.vocab_size}: {file} has {num_entries} entries; "
                "use the recipe it was built with"
            )
        self._encode_special_tokens_as_text()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, each ended by `<eos>`; uses all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*encoding.ids, EOS_ID] for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, including the names of special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def _encode_special_tokens_as_text(self) -> None:
        # This belongs to the object, not to tokenizer.json; without it the text "<eos>" would end a document.
        self._backend.encode_special_tokens = True
