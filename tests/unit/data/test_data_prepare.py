"""From text files to token files: what is in them, when they are built, and what is refused."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from moe_train.config.kinds.data import BPEConfig, FilesCorpusConfig
from moe_train.config.schema import DataConfig
from moe_train.data import prepare as prepare_module
from moe_train.data.cache import verified
from moe_train.data.corpora.corpus import Document
from moe_train.data.listing import validation_names
from moe_train.data.prepare import find_source, prepare
from moe_train.data.tokenizer import EOS_ID, BPETokenizer
from moe_train.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    root.mkdir()
    for number in range(10):
        (root / f"{number}.txt").write_text(
            f"This is text number {number}, and this is all of it: {number}.\n" * 20
        )
    return root


@pytest.fixture
def config(folder: Path) -> DataConfig:
    return DataConfig(
        corpus=FilesCorpusConfig(path=str(folder)),
        tokenizer=BPEConfig(vocab_size=280),
        validation_fraction=0.2,
    )


def no_news(sentence: str) -> None:
    raise AssertionError(f"nothing was to be said, but this was: {sentence}")


def decoded(tokens, tokenizer) -> list[str]:
    documents = [tokens.document(number).tolist() for number in range(tokens.num_documents)]
    assert all(document[-1] == EOS_ID and document.count(EOS_ID) == 1 for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def test_the_streams_are_the_documents_of_either_side_each_ended_by_eos(config, folder, tmp_path):
    prepared = prepare(config, tmp_path / "cache", lambda _: None)
    tokenizer = BPETokenizer(config.tokenizer)
    tokenizer.load(prepared.tokenizer_file)
    source = find_source(config, tmp_path / "cache", no_news)
    held_out = validation_names(source.listing, 0.2)
    assert len(held_out) == 2
    texts = {path.name: path.read_text() for path in sorted(folder.iterdir())}
    assert decoded(prepared.train, tokenizer) == [
        text for name, text in texts.items() if name not in held_out
    ]
    assert decoded(prepared.validation, tokenizer) == [
        text for name, text in texts.items() if name in held_out
    ]
    assert prepared.num_documents == 10
    assert prepared.num_bytes == sum(map(len, texts.values()))
    assert prepared.bytes_per_token == pytest.approx(prepared.num_bytes / prepared.num_tokens)


def test_the_tokenizer_never_sees_validation_text(config, folder, tmp_path):
    source = find_source(config, tmp_path / "cache", no_news)
    for name in source.validation:
        (folder / name).write_text("xylophone " * 200)
    prepared = prepare(config, tmp_path / "cache", lambda _: None)
    assert "xylo" not in prepared.tokenizer_file.read_text()


def test_tokens_are_counted_in_the_training_text_alone(config, tmp_path, monkeypatch):
    prepared = prepare(config, tmp_path / "cache", print)
    monkeypatch.setattr(prepare_module, "COUNTED_TOKENS", 100)  # in several pieces
    counts = prepared.count_tokens(config.tokenizer.size)
    assert len(counts) == config.tokenizer.size
    assert counts.sum() == len(prepared.train.tokens)
    assert counts[EOS_ID] == prepared.train.num_documents


def test_neighbours_are_counted_like_pairs_one_by_one(config, tmp_path, monkeypatch):
    prepared = prepare(config, tmp_path / "cache", print)
    monkeypatch.setattr(prepare_module, "COUNTED_TOKENS", 100)  # in several pieces
    size = config.tokenizer.size
    counts = prepared.count_neighbours(size, contexts=5)
    assert counts.shape == (size, 10)
    common = (-prepared.count_tokens(size)).argsort(kind="stable")[:5].tolist()
    text = prepared.train.tokens.tolist()
    for column, neighbour in enumerate(common):
        followers = Counter(after for before, after in pairwise(text) if before == neighbour)
        leaders = Counter(before for before, after in pairwise(text) if after == neighbour)
        for counted, expected in ((counts[:, column], followers), (counts[:, 5 + column], leaders)):
            assert counted.tolist() == [expected[token] for token in range(size)]
    assert prepared.count_neighbours(size, contexts=2 * size).shape == (size, 2 * size)


def test_a_second_call_reads_the_cache_and_says_nothing(config, tmp_path):
    said: list[str] = []
    first = prepare(config, tmp_path / "cache", said.append)
    assert said[0] == "learning 280 tokens from 8 of 10 documents"
    assert said[-1] == "encoded 0.0 of 0.0 MB"
    second = prepare(config, tmp_path / "cache", no_news)
    assert second.fingerprint == first.fingerprint
    assert second.train.tokens.tolist() == first.train.tokens.tolist()


def test_the_same_text_in_another_place_shares_the_cache_entry(config, folder, tmp_path):
    first = prepare(config, tmp_path / "cache", lambda _: None)
    moved = folder.rename(tmp_path / "moved")
    config.corpus.path = str(moved)
    assert prepare(config, tmp_path / "cache", no_news).fingerprint == first.fingerprint


def test_changed_text_is_another_fingerprint(config, folder, tmp_path):
    first = prepare(config, tmp_path / "cache", lambda _: None)
    (folder / "3.txt").write_text("Other text that is not what it was.\n" * 20)
    assert prepare(config, tmp_path / "cache", lambda _: None).fingerprint != first.fingerprint


def test_a_truncated_token_file_is_built_again(config, tmp_path):
    first = prepare(config, tmp_path / "cache", lambda _: None)
    expected = first.train.tokens.tolist()
    path = first.folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-10])
    said: list[str] = []
    assert prepare(config, tmp_path / "cache", said.append).train.tokens.tolist() == expected
    assert "train.bin" in said[0]
    assert sum("damaged" in sentence for sentence in said) == 1


@pytest.mark.parametrize("change", ["altered", "removed", "added"])
def test_text_that_changes_while_it_is_read_is_refused(config, tmp_path, monkeypatch, change):
    class Unsteady:
        """A corpus that is another one from the second reading on."""

        def __init__(self) -> None:
            self.readings = 0

        def documents(self, cache_dir, progress):
            self.readings += 1
            texts = ["some text"] * 4 if self.readings == 1 else {
                "altered": ["some text"] * 3 + ["other"],
                "removed": ["some text"] * 3,
                "added": ["some text"] * 5,
            }[change]  # fmt: skip
            for number, text in enumerate(texts):
                yield Document(str(number), text)

    real, unsteady = prepare_module.build, Unsteady()
    monkeypatch.setattr(
        prepare_module, "build", lambda place, kind: unsteady if place == "data.corpus" else real(place, kind)
    )
    with pytest.raises(DataError, match=r"document [34] changed while the corpus was read"):
        prepare(config, tmp_path / "cache", lambda _: None)
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_a_vocabulary_larger_than_the_text_can_fill_is_refused_and_leaves_no_entry(config, tmp_path):
    config.tokenizer.vocab_size = 4096
    with pytest.raises(DataError, match=r"vocab_size=4096: the training documents repeat too little"):
        prepare(config, tmp_path / "cache", lambda _: None)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_corpus_of_one_file_is_refused_with_the_way_out(config, folder, tmp_path):
    config.corpus.path = str(folder / "1.txt")
    with pytest.raises(DataError, match="divide it into at least two files"):
        prepare(config, tmp_path / "cache", no_news)


def test_preparing_data_needs_neither_torch_nor_megatron():
    script = "import sys, moe_train.data.commands; print({'torch', 'megatron'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


BUILDER = """
import sys
from pathlib import Path
from moe_train.config.kinds.data import BPEConfig, FilesCorpusConfig
from moe_train.config.schema import DataConfig
from moe_train.data.prepare import prepare
corpus = FilesCorpusConfig(path=sys.argv[1])
config = DataConfig(corpus=corpus, tokenizer=BPEConfig(vocab_size=280), validation_fraction=0.2)
print("ready", flush=True)
prepare(config, Path(sys.argv[2]), lambda _: None)
"""


def build_and_kill(folder: Path, cache: Path, after_s: float) -> float:
    """Build in a process that is killed after so many seconds; returns how long it was let run."""
    arguments = [sys.executable, "-c", BUILDER, str(folder), str(cache)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as builder:
        assert builder.stdout.readline() == b"ready\n"
        begun = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            builder.wait(timeout=after_s)
        builder.kill()
        return time.monotonic() - begun


@pytest.mark.faults
def test_builds_killed_at_random_moments_leave_a_whole_entry_or_none(config, folder, tmp_path):
    for path in folder.iterdir():
        path.write_text(path.read_text() * 30)
    whole_s = build_and_kill(folder, tmp_path / "reference", after_s=60)
    reference = prepare(config, tmp_path / "reference", no_news)
    cache, random = tmp_path / "cache", Random(0)
    entry = cache / "tokens" / reference.folder.name
    num_unfinished = 0
    for _ in range(20):
        build_and_kill(folder, cache, after_s=random.uniform(0, 1.2 * whole_s))
        if entry.exists():
            verified(entry)
            shutil.rmtree(entry)
        else:
            num_unfinished += 1
    assert num_unfinished > 0
    built = prepare(config, cache, lambda _: None)
    assert built.train.tokens.tolist() == reference.train.tokens.tolist()
    assert [path.name for path in (cache / "tokens").iterdir() if "building" in path.name] == []
