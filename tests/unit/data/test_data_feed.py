"""The data of a recipe as training and translation see it: whole groups and passes, or so many at once."""

from pathlib import Path

import pytest
from small_run import write_corpus
from tiny_model import one_worker, tiny_recipe

from moe_train.data.feed import Feed
from moe_train.data.loader import Loader
from moe_train.data.pair_loader import PairLoader


def feed(folder: Path, *overrides: str) -> Feed:
    recipe = tiny_recipe(f"data.corpus.path={folder / 'text'}", *overrides)
    return Feed.open(recipe, str(folder / "cache"), lambda sentence: None)


@pytest.fixture
def text(tmp_path):
    write_corpus(tmp_path / "text")
    return tmp_path


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("a", "b"):
        for language in ("en", "de"):
            lines = "".join(f"{language} {name} {number}\n" for number in range(200))
            (tmp_path / f"text/{name}.{language}").write_text(lines)
    return tmp_path


def test_validation_comes_in_passes_of_training_and_whole_routing_groups(text):
    of_training = feed(text, "moe.group_sequences=4", "data.micro_batch=4")
    assert isinstance(of_training.training(), Loader)
    assert [len(batch.tokens) for batch in of_training.validation(15, one_worker())] == [4, 4, 4]


def test_so_many_at_once_stand_apart_from_passes_and_groups(text):
    sizes = [
        len(batch.tokens)
        for batch in feed(text, "moe.group_sequences=4", "data.micro_batch=4").validation(15, one_worker(), 8)
    ]
    assert sizes == [8, 7]


def test_the_vocabulary_counts_the_training_text(text):
    opened = feed(text)
    counts = opened.vocabulary().count()
    assert len(counts) == 300
    assert int(counts.sum()) == len(opened.data.train.tokens)


def test_a_parallel_corpus_gives_pairs(pairs):
    opened = feed(
        pairs,
        "model.architecture=encoder_decoder",
        "objective.kind=translation",
        "data.corpus.kind=parallel_files",
        "data.corpus.min_words=1",
    )
    assert isinstance(opened.training(), PairLoader)
    batch = opened.validation(8, one_worker())[0]
    first = [token for token in batch.source[0].tolist() if token > 1]
    assert opened.tokenizer().decode(first).startswith("en")
