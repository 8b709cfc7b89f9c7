"""The corpus of files, and its split into documents."""

import glob
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moe_train.config.kinds.data import FilesCorpusConfig
from moe_train.data.corpora.files import FilesCorpus
from moe_train.data.corpora.folder import distinct, find_files, split_glob
from moe_train.data.corpora.left_out import LeftOut
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


def left_out(what: str, first: object, count: int = 1) -> str:
    return f"left out of the corpus: {what} ({count}; the first is {first})"


def test_a_folder_gives_its_text_files_in_the_order_of_their_names_and_reports_the_others(folder, tmp_path):
    assert read(folder, tmp_path) == (
        [("b/a.md", "first\r\nline"), ("z.txt", "last")],
        [
            left_out("files whose suffix is not in data.corpus.suffixes", folder / "b/image.png"),
            left_out("files without text", folder / "b/blank.txt"),
        ],
    )


def test_suffixes_choose_the_files_of_a_folder(folder, tmp_path):
    documents, reports = read(folder, tmp_path, suffixes=[".md"])
    assert documents == [("b/a.md", "first\r\nline")]
    assert reports == [
        left_out("files whose suffix is not in data.corpus.suffixes", folder / "z.txt", count=3)
    ]


def test_a_glob_names_files_relative_to_its_fixed_part(folder, tmp_path):
    assert read(folder / "**" / "*.txt", tmp_path)[0] == [("z.txt", "last")]
    assert read(folder / "*" / "a.*", tmp_path) == ([("b/a.md", "first\r\nline")], [])


def test_a_single_file_is_a_corpus_of_one_document(folder, tmp_path):
    assert read(folder / "z.txt", tmp_path) == ([("z.txt", "last")], [])


def test_files_that_are_not_utf8_are_left_out_and_counted(folder, tmp_path):
    (folder / "latin.txt").write_bytes("Größe".encode("latin-1"))
    documents, reports = read(folder, tmp_path)
    assert [name for name, _ in documents] == ["b/a.md", "z.txt"]
    assert left_out("files that are not UTF-8", folder / "latin.txt") in reports


def test_a_path_that_is_not_there_is_refused_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"data\.corpus\.path=.*nowhere: there is no such file or folder"):
        read(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("pattern", ["", "*.rst"])
def test_a_corpus_without_text_is_refused(folder, tmp_path, pattern):
    with pytest.raises(DataError, match=r"holds no text \(. files match.*(suffix|end it with /\*\*/\*)"):
        read(folder / "b" / pattern if pattern else folder / "b", tmp_path, suffixes=[".txt"])


def test_a_file_that_cannot_be_opened_is_named(folder, tmp_path):
    (folder / "gone.txt").symlink_to(folder / "nothing")
    with pytest.raises(DataError, match=r"gone\.txt is a link to \S*nothing, which is not there; correct or"):
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


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links of every sort; without following any it has `a.txt` and `sub/b.txt`."""
    root, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    (root / "sub").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub" / "b.txt").write_text("b")
    (elsewhere / "c.txt").write_text("c")
    (elsewhere / "deep" / "d.txt").write_text("d")
    for name, target in (
        ("Again", "sub"),  # in the order of names it comes before the folder itself
        ("e.txt", "../elsewhere/deep/d.txt"),
        ("gone", "../no/such/folder"),
        ("more", "../elsewhere"),
        ("more_again", "../elsewhere"),
        ("sub/here", "."),
        ("sub/outside", "../.."),
        ("A.txt", "a.txt"),
    ):
        (root / name).symlink_to(target)
    (elsewhere / "back").symlink_to("../texts")
    return root


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**"])
def test_links_are_followed_and_no_text_is_read_twice(linked, tmp_path, pattern):
    if pattern == "**":
        (linked / "gone").unlink()  # a name that matches and cannot be read is an error, as in a folder
    documents, reports = read(linked / pattern, tmp_path)
    assert documents == [("a.txt", "a"), ("e.txt", "d"), ("more/c.txt", "c"), ("sub/b.txt", "b")]
    folders = "linked folders that are read under another path"
    assert left_out(folders, f"{linked}/Again, read as {linked}/sub", count=3) in reports
    files = "links to files that are read under another name"
    assert left_out(files, f"{linked}/A.txt, read as {linked}/a.txt", count=2) in reports
    back = "links that lead back to a folder above them"
    assert left_out(back, linked / "sub/here", count=2) in reports
    if not pattern:
        assert left_out("dangling links", linked / "gone") in reports


def test_a_folder_of_links_alone_holds_text(linked, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "texts").symlink_to(linked)
    (links / "texts" / "gone").unlink()
    assert [name for name, _ in read(links, tmp_path)[0]] == [
        "texts/a.txt",
        "texts/e.txt",
        "texts/more/c.txt",
        "texts/sub/b.txt",
    ]


def test_two_links_to_one_file_are_one_document_under_the_first_name(tmp_path):
    (tmp_path / "blob").write_text("text")
    root = tmp_path / "texts"
    root.mkdir()
    for name in ("two.txt", "one.txt"):
        (root / name).symlink_to(tmp_path / "blob")
    assert read(root, tmp_path)[0] == [("one.txt", "text")]


def test_files_of_the_same_content_and_hard_links_stay_documents_of_their_own(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    for name in ("one.txt", "two.txt"):
        (root / name).write_text("text")
    (root / "three.txt").hardlink_to(root / "one.txt")  # a copy of the folder on another disk has three files
    assert len(read(root, tmp_path)[0]) == 3


@pytest.mark.parametrize("pattern", ["", "*", "**/*.txt"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_plain_file_is_reported_and_never_opened(folder, tmp_path, pattern, kind):
    special = folder / "special.txt"
    if kind == "pipe":
        os.mkfifo(special)  # opening it would wait for a writer for ever
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(special))
    else:
        special.symlink_to("/dev/null")
    documents, reports = read(folder / pattern, tmp_path)
    assert ("z.txt", "last") in documents
    assert left_out("pipes, sockets and devices, which are not regular files", special) in reports


def test_a_pipe_in_the_place_of_the_corpus_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        DataError, match=r"path=.*pipe: must not be a pipe, a socket or a device, .*write its text"
    ):
        read(tmp_path / "pipe", tmp_path)


def test_a_glob_that_matches_folders_says_how_to_read_them(folder, tmp_path):
    (folder / "top.md").write_text("top")
    documents, reports = read(folder / "*", tmp_path)
    assert [name for name, _ in documents] == ["top.md", "z.txt"]
    assert left_out("folders that match the glob, whose files /** would include", folder / "b") in reports
    with pytest.raises(DataError, match=r"holds no text \(0 files match\); a glob must match files"):
        read(folder / "[b]", tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "**",
        "**/*",
        "*/*",
        "**/*.txt",
        "*/**/*.txt",
        "**/x/*",
        "**/x/**",
        "**/**/?.txt",
        "x/*",
        "[xy]/**/.h*",
        "**/x/**/y/*.txt",
        "*.txt",
        "**.txt",
    ],
)
def test_without_links_a_glob_matches_what_pythons_does(tmp_path, pattern):
    names = [
        "a.txt",
        ".h.txt",
        "b.md",
        "x/a.txt",
        "x/y/z.txt",
        "x/x/y/.h",
        "y/x/a.txt",
        "y/z/x/y/b.txt",
        "x/w/y/c.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    expected = glob.glob(str(tmp_path / pattern), recursive=True, include_hidden=True)
    root, parts = split_glob(tmp_path / pattern)
    found = distinct(find_files(root, parts, LeftOut()), LeftOut())
    assert sorted(map(str, found)) == sorted({path for path in expected if os.path.isfile(path)})


def test_the_standard_library_comes_without_its_tests(tmp_path):
    documents, _ = read(None, tmp_path)
    names = [name for name, _ in documents]
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert names == sorted(names)
    assert sum(len(text) for _, text in documents) > 5e6
