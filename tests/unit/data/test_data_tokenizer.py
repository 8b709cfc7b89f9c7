"""Byte-level BPE: exact size, exact round trip."""

import pytest

from moe_train.config.kinds.data import BPEConfig
from moe_train.data.tokenizer import EOS_ID, BPETokenizer
from moe_train.errors import DataError

TEXTS = ["the cat and the hat and the bat\n" * 3, "that is the end of the matter\n" * 3]


@pytest.fixture
def tokenizer() -> BPETokenizer:
    trained = BPETokenizer(BPEConfig(vocab_size=270))
    trained.train(TEXTS)
    return trained


@pytest.mark.parametrize(
    "text", ["the cat", "Übung naïve £5 日本 \t x\r\n", "\x00\x7f", "<eos> and <pad>", "  "]
)
def test_any_text_decodes_to_itself(tokenizer, text):
    (ids,) = tokenizer.encode([text])
    assert ids[-1] == EOS_ID
    assert tokenizer.decode(ids[:-1]) == text


def test_text_that_spells_a_special_token_is_ordinary_text(tokenizer):
    assert tokenizer.encode(["a<eos>b"])[0].count(EOS_ID) == 1
    assert tokenizer.decode([EOS_ID]) == "<eos>"


def test_frequent_pairs_become_tokens(tokenizer):
    (ids,) = tokenizer.encode([" the"])
    assert len(ids) == 2
    assert 258 <= ids[0] < 270


def test_a_saved_tokenizer_encodes_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = BPETokenizer(BPEConfig(vocab_size=270))
    loaded.load(tmp_path / "tokenizer.json")
    texts = [*TEXTS, "a<eos>b"]
    assert loaded.encode(texts) == tokenizer.encode(texts)


def test_the_smallest_vocabulary_is_the_bytes():
    tokenizer = BPETokenizer(BPEConfig(vocab_size=258))
    tokenizer.train(TEXTS)
    assert len(tokenizer.encode(["abc"])[0]) == 4


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(DataError, match=r"vocab_size=257: must be at least 258"):
        BPETokenizer(BPEConfig(vocab_size=257)).train(TEXTS)


def test_a_vocabulary_the_text_cannot_fill_is_refused_with_the_size_it_can():
    with pytest.raises(
        DataError, match=r"vocab_size=4096: .* set data\.tokenizer\.vocab_size=(\d+) or less"
    ) as caught:
        BPETokenizer(BPEConfig(vocab_size=4096)).train(TEXTS)
    reachable = int(str(caught.value).split("vocab_size=")[2].split()[0])
    BPETokenizer(BPEConfig(vocab_size=reachable)).train(TEXTS)


def test_a_file_that_is_no_tokenizer_or_of_another_size_is_refused(tokenizer, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json: cannot be read"):
        BPETokenizer(BPEConfig(vocab_size=270)).load(tmp_path / "broken.json")
    tokenizer.save(tmp_path / "other.json")
    with pytest.raises(DataError, match=r"vocab_size=300: .* has 270 entries"):
        BPETokenizer(BPEConfig(vocab_size=300)).load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("plain words of a plain text", 0),
        ("x" * 120 + " " + "y" * 150, 150),
        ("ab12" * 50, 0),
        ("é" * 130, 130),
        ("a" + " " * 140 + "b", 140),
        ("", 0),
    ],
)
def test_the_longest_word_is_what_is_learned_from_as_a_whole(text, longest):
    assert BPETokenizer(BPEConfig(vocab_size=300)).longest_word(text, at_least=100) == longest
