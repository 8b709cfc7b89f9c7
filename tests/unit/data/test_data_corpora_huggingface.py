"""Data sets of the Hugging Face hub, by way of local folders."""

import json
import os
import sys
from pathlib import Path

import pytest

from moe_train.config.kinds.data import HuggingFaceCorpusConfig
from moe_train.data.corpora import huggingface
from moe_train.data.corpora.corpus import Document
from moe_train.data.corpora.huggingface import HuggingFaceCorpus
from moe_train.errors import DataError

ROWS = [{"text": "first", "label": 1}, {"text": " ", "label": 2}, {"text": "third", "label": 3}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    root = tmp_path / "set"
    root.mkdir()
    return root


def write_json_lines(folder: Path) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train.parquet")


def read_and_report(folder: Path | str, tmp_path: Path, **options) -> tuple[list[Document], list[str]]:
    reports: list[str] = []
    config = HuggingFaceCorpusConfig(path=str(folder), **options)
    return list(HuggingFaceCorpus(config).documents(tmp_path / "cache", reports.append)), reports


def read(folder: Path | str, tmp_path: Path, **options) -> list[Document]:
    return read_and_report(folder, tmp_path, **options)[0]


@pytest.mark.parametrize("write", [write_json_lines, write_parquet])
def test_the_rows_of_a_folder_are_documents_named_by_their_numbers(folder, tmp_path, write):
    write(folder)
    assert read(folder, tmp_path) == [Document("000000000", "first"), Document("000000002", "third")]
    assert not (tmp_path / "cache").exists()


def test_max_documents_is_a_limit_on_rows(folder, tmp_path):
    write_json_lines(folder)
    assert read(folder, tmp_path, max_documents=2) == [Document("000000000", "first")]


@pytest.mark.parametrize("field", ["body", "label"])
def test_a_field_without_text_is_refused_with_those_that_have_it(folder, tmp_path, field):
    write_json_lines(folder)
    with pytest.raises(
        DataError, match=rf"text_field={field}: must be a text field.*does not have.*text fields are: text"
    ):
        read(folder, tmp_path, text_field=field)


def test_a_split_that_is_not_there_is_refused(folder, tmp_path):
    write_json_lines(folder)
    with pytest.raises(DataError, match=r"split=test \(Bad split: test"):
        read(folder, tmp_path, split="test")


def test_an_empty_folder_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="cannot be read as a data set"):
        read(folder, tmp_path)


def test_without_the_package_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'moe-train\[huggingface\]'"):
        read(tmp_path, tmp_path)


def test_a_hub_data_set_is_fetched_once_and_then_read_from_the_cache(tmp_path, monkeypatch):
    fetched = []

    def rows(self, left_out):
        fetched.append(self._config.path)
        yield from ROWS

    monkeypatch.setattr(huggingface.HuggingFaceCorpus, "_rows", rows)
    first = read("owner/name", tmp_path)
    assert (
        first
        == read("owner/name", tmp_path)
        == [Document("000000000", "first"), Document("000000002", "third")]
    )
    assert fetched == ["owner/name"]
    read("owner/name", tmp_path, max_documents=1)
    assert len(fetched) == 2


def test_what_is_left_out_of_a_local_data_set_is_reported(folder, tmp_path):
    write_json_lines(folder)
    (tmp_path / "elsewhere").mkdir()
    write_json_lines(tmp_path / "elsewhere")
    (folder / "more").symlink_to("../elsewhere")
    (folder / "README.md").write_text("# About\n")
    os.mkfifo(folder / "train.pipe")
    documents, reports = read_and_report(folder, tmp_path)
    assert [document.text for document in documents] == ["first", "third"]
    assert reports == [
        "left out of the corpus: pipes, sockets and devices, which are not regular files "
        f"(1; the first is {folder}/train.pipe)",
        "left out of the corpus: files that `datasets` assigns to no split, such as those in linked folders "
        f"(1; the first is {folder}/more/train.jsonl)",
        "left out of the corpus: rows without text (1; the first is row 1)",
    ]


def test_what_was_left_out_of_a_fetched_data_set_is_reported_at_every_start(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface.HuggingFaceCorpus, "_rows", lambda self, left_out: iter(ROWS))
    for _ in range(2):
        _, reports = read_and_report("owner/name", tmp_path)
        assert reports[-1] == "left out of the corpus: rows without text (1; the first is row 1)"
