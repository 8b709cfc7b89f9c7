"""The corpus of files, and its split into documents."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.data.corpora.files import FilesCorpus
from moe_train.errors import DataError


def read(path: Path | str | None, tmp_path: Path, **options):
    """The documents as (name, text), and what was said."""
    said: list[str] = []
    config = FilesCorpusConfig(path=None if path is None else str(path), **options)
    documents = list(FilesCorpus(config).documents(tmp_path / "cache", said.append))
    return [(document.name, document.text) for document in documents], said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "b").mkdir(parents=True)
    (root / "z.txt").write_text("last")
    (root / "b" / "a.md").write_bytes(b"first\r\nline")
    (root / "b" / "blank.txt").write_text(" \n")
    (root / "b" / "image.png").write_bytes(b"\x89PNG")
    return root


def test_a_folder_gives_its_text_files_in_the_order_of_their_names(folder, tmp_path):
    assert read(folder, tmp_path) == ([("b/a.md", "first\r\nline"), ("z.txt", "last")], [])


def test_suffixes_choose_the_files_of_a_folder(folder, tmp_path):
    assert read(folder, tmp_path, suffixes=[".md"]) == ([("b/a.md", "first\r\nline")], [])


def test_a_glob_names_files_relative_to_its_fixed_part(folder, tmp_path):
    assert read(folder / "**" / "*.txt", tmp_path) == ([("z.txt", "last")], [])
    assert read(folder / "*" / "a.*", tmp_path) == ([("b/a.md", "first\r\nline")], [])


def test_a_single_file_is_a_corpus_of_one_document(folder, tmp_path):
    assert read(folder / "z.txt", tmp_path) == ([("z.txt", "last")], [])


def test_files_that_are_not_utf8_are_left_out_and_counted(folder, tmp_path):
    (folder / "latin.txt").write_bytes("Größe".encode("latin-1"))
    documents, said = read(folder, tmp_path)
    assert [name for name, _ in documents] == ["b/a.md", "z.txt"]
    latin = folder / "latin.txt"
    assert said == [f"1 of 4 files are not UTF-8 and are left out; the first is {latin}"]


def test_a_path_that_is_not_there_is_refused_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"data\.corpus\.path=.*nowhere: there is no such file or folder"):
        read(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("pattern", ["", "*.rst"])
def test_a_corpus_without_text_is_refused(folder, tmp_path, pattern):
    with pytest.raises(DataError, match=r"holds no text .*suffix"):
        read(folder / "b" / pattern if pattern else folder / "b", tmp_path, suffixes=[".txt"])


def test_a_file_that_cannot_be_opened_is_named(folder, tmp_path):
    (folder / "gone.txt").symlink_to(folder / "nothing")
    with pytest.raises(DataError, match=r"gone\.txt cannot be read \(No such file or directory\)"):
        read(folder, tmp_path)


@pytest.mark.parametrize("locked", ["b", "z.txt"])
def test_a_file_or_folder_without_permission_is_named(folder, tmp_path, locked):
    (folder / locked).chmod(0)
    script = (
        "import os, sys\n"
        "from moe_train.config.kinds.data import FilesCorpusConfig\n"
        "from moe_train.data.corpora.files import FilesCorpus\n"
        "from moe_train.errors import DataError\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: list(FilesCorpus(FilesCorpusConfig(path='.')).documents(None, print))\n"
        "except DataError as error: print(error)\n"
    )
    for parent in (folder, *folder.parents):
        if os.geteuid() == 0 and parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    (folder / locked).chmod(0o755)
    assert f"{locked} cannot be read (Permission denied)" in done.stdout


def test_the_standard_library_comes_without_its_tests(tmp_path):
    documents, _ = read(None, tmp_path)
    names = [name for name, _ in documents]
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert names == sorted(names)
    assert sum(len(text) for _, text in documents) > 5e6
