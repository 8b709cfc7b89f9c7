"""The split by document, and the fingerprint."""

from dataclasses import replace

import pytest

from moe_train.config.kinds.data import BPEConfig, FilesCorpusConfig
from moe_train.config.schema import DataConfig
from moe_train.data.corpora.corpus import Document
from moe_train.data.listing import Listed, fingerprint, list_documents, validation_names
from moe_train.errors import DataError

LISTING = [Listed(f"file{number}.txt", f"{number:064x}", 10) for number in range(40)]


def test_a_document_is_listed_by_the_hash_and_size_of_its_utf8_bytes():
    listed = Listed.of(Document("a", "é"))
    assert listed.num_bytes == 2
    assert listed.sha256 == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"


@pytest.mark.parametrize(
    ("num_documents", "fraction", "expected"),
    [(40, 0.1, 4), (40, 0.001, 1), (40, 0.999, 39), (2, 0.5, 1), (3, 0.05, 1)],
)
def test_validation_is_a_share_of_the_documents_and_neither_side_is_empty(num_documents, fraction, expected):
    assert len(validation_names(LISTING[:num_documents], fraction)) == expected


def test_the_split_does_not_depend_on_the_order_of_documents():
    assert validation_names(LISTING[::-1], 0.2) == validation_names(LISTING, 0.2)


def test_a_larger_share_keeps_the_documents_of_a_smaller_one():
    assert validation_names(LISTING, 0.1) < validation_names(LISTING, 0.3)


def test_one_document_cannot_be_split():
    with pytest.raises(DataError, match=r"one document \(file0\.txt\) cannot be split.*at least two files"):
        validation_names(LISTING[:1], 0.1)


def test_no_documents_and_two_of_one_name_are_refused():
    with pytest.raises(DataError, match="holds no documents"):
        list_documents([])
    with pytest.raises(DataError, match="same name"):
        list_documents([Document("a", "x"), Document("a", "y")])


def test_the_fingerprint_follows_text_names_split_and_tokenizer_only():
    config = DataConfig()
    reference = fingerprint(LISTING, config)
    same = [
        fingerprint(LISTING[::-1], config),
        fingerprint(LISTING, replace(config, corpus=FilesCorpusConfig(path="elsewhere"))),
        fingerprint(LISTING, replace(config, sequence_length=64, global_batch=8, validation_sequences=1)),
    ]
    others = [
        fingerprint(LISTING[:-1], config),
        fingerprint([replace(LISTING[0], sha256="f" * 64), *LISTING[1:]], config),
        fingerprint([replace(LISTING[0], name="new.txt"), *LISTING[1:]], config),
        fingerprint(LISTING, replace(config, validation_fraction=0.06)),
        fingerprint(LISTING, replace(config, tokenizer=BPEConfig(vocab_size=512))),
    ]
    assert set(same) == {reference}
    assert len({reference, *others}) == 6
