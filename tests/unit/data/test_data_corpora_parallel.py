"""Sentence pairs: aligned pages, gettext catalogues, files of lines, and what is left of them."""

import os
from pathlib import Path

import polib
import pytest

from moe_train.config.check import problems
from moe_train.config.kinds.parallel_corpus import ParallelDebianCorpusConfig, ParallelFilesCorpusConfig
from moe_train.config.schema import DataConfig, Recipe
from moe_train.data.cache import obtain
from moe_train.data.commands import main
from moe_train.data.corpora import apt, parallel_debian
from moe_train.data.corpora.alignment import align
from moe_train.data.corpora.catalogues import find_catalogues, read_catalogue
from moe_train.data.corpora.corpus import Document
from moe_train.data.corpora.left_out import LeftOut
from moe_train.data.corpora.pairs import Pair, read_pairs, select, swapped, write_pairs
from moe_train.data.corpora.parallel_debian import ParallelDebianCorpus, read_source
from moe_train.data.corpora.parallel_files import ParallelFilesCorpus, align_lines
from moe_train.data.listing import fingerprint
from moe_train.data.prepare import prepare
from moe_train.data.tokenizer import EOS_ID
from moe_train.errors import DataError

NUMBERS = ("one two three", "four five six", "seven eight nine")
ZAHLEN = ("eins zwei drei", "vier fünf sechs", "sieben acht neun")


def catalogue(entries: dict[str, str]) -> polib.POFile:
    file = polib.POFile()
    file.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    file.extend(polib.POEntry(msgid=key, msgstr=value) for key, value in entries.items())
    return file


def silent(sentence: str) -> None:
    pass


def pairs_of(documents) -> list[Pair]:
    return [pair for document in documents for pair in read_pairs(document.text)]


def test_pairs_survive_being_written_with_single_blanks_and_without_empty_sides():
    text = write_pairs([Pair("a\tb\n c", " d "), Pair("only one", " \n")])
    assert read_pairs(text) == [Pair("a b c", "d")]


def test_what_is_kept_are_new_sentences_of_enough_words_that_differ_and_are_alike_in_length():
    first = [
        Pair(NUMBERS[0], ZAHLEN[0]),
        Pair("two words", "zwei Worte"),
        Pair(NUMBERS[1], NUMBERS[1]),
        Pair("a b c", "a much longer one"),
    ]
    second = [Pair(NUMBERS[0], "eins, zwei, drei"), Pair(NUMBERS[1], ZAHLEN[1])]
    documents = [
        Document("1", write_pairs(first)),
        Document("2", write_pairs(first)),
        Document("3", write_pairs(second)),
    ]
    assert list(select(documents, 3, LeftOut())) == [
        Document("1", f"{NUMBERS[0]}\t{ZAHLEN[0]}"),
        Document("3", f"{NUMBERS[1]}\t{ZAHLEN[1]}"),
    ]
    assert Pair("two words", "zwei Worte") in pairs_of(select(documents, 2, LeftOut()))


def test_other_way_round_a_sentence_of_the_other_language_counts_once():
    text = write_pairs([Pair(NUMBERS[0], ZAHLEN[0]), Pair(NUMBERS[1], ZAHLEN[0])])
    assert pairs_of(select([swapped(Document("1", text))], 3, LeftOut())) == [Pair(ZAHLEN[0], NUMBERS[0])]


def test_pages_of_one_structure_are_aligned_block_by_block():
    english = "<html><h1>Title</h1><p>See the <b>first</b> page.<pre>code</pre><ul><li>Item</li><li></li></ul></html>"
    german = "<html><h1>Titel</h1><p>Die <i>erste</i> Seite.<pre>Code <p></pre><ul><li>Ding</li><li>x</li></ul></html>"
    assert align(english, german) == [
        Pair("Title", "Titel"),
        Pair("See the first page.", "Die erste Seite."),
        Pair("Item", "Ding"),
    ]
    assert align(english, german.replace("</ul>", "<li>mehr</li></ul>")) == []


def test_translators_credits_do_not_hinder_the_alignment():
    page = "<page><info><link/>{}</info><title>{}</title></page>"
    english, german = page.format("", "Title"), page.format("<credit><name>A</name></credit>", "Titel")
    assert align(english, german) == [Pair("Title", "Titel")]


def test_catalogues_give_translated_entries_and_the_first_of_plural_forms(tmp_path):
    file = catalogue({NUMBERS[0]: ZAHLEN[0], "not translated": ""})
    file.append(polib.POEntry(msgid="guess", msgstr="geraten", flags=["fuzzy"]))
    file.append(polib.POEntry(msgid="old", msgstr="alt", obsolete=True))
    file.append(
        polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural={0: "%d Datei", 1: "x"})
    )
    file.save(str(tmp_path / "de.po"))
    file.save_as_mofile(str(tmp_path / "de.mo"))
    expected = {Pair(NUMBERS[0], ZAHLEN[0]), Pair("%d file", "%d Datei")}
    assert set(read_catalogue(tmp_path / "de.po")) == expected
    assert set(read_catalogue(tmp_path / "de.mo")) == expected


def test_a_file_that_is_no_catalogue_is_named(tmp_path):
    for name, content in (("de.mo", b"nonsense"), ("de.po", b"\x00\xff nonsense"), ("cut.mo", b"\xde\x12")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(.*move it out"):
            list(read_catalogue(tmp_path / name))


def test_the_language_of_a_catalogue_is_in_its_path(tmp_path):
    names = (
        "de.po",
        "de_AT.po",
        "locale/de/LC_MESSAGES/a.mo",
        "fr/LC_MESSAGES/a.mo",
        "decode.po",
        "de/x.txt",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_catalogues(tmp_path, "de", LeftOut())] == [
        "de.po",
        "de_AT.po",
        "locale/de/LC_MESSAGES/a.mo",
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "po").mkdir(parents=True)
    (root / "news.en").write_text("\n".join(NUMBERS[:2]) + "\n")
    (root / "news.de").write_text("\n".join(ZAHLEN[:2]) + "\n")
    catalogue({NUMBERS[2]: ZAHLEN[2], NUMBERS[0]: "anders gesagt: eins"}).save(str(root / "po" / "de.po"))
    return root


def test_a_folder_gives_files_of_lines_and_catalogues_in_either_direction(folder):
    config = ParallelFilesCorpusConfig(path=str(folder))
    documents = list(ParallelFilesCorpus(config).documents(folder, silent))
    assert [document.name for document in documents] == ["news", "po/de.po"]
    assert pairs_of(documents)[:2] == [Pair(*pair) for pair in zip(NUMBERS[:2], ZAHLEN[:2], strict=True)]
    assert pairs_of(documents)[-1] == Pair(NUMBERS[2], ZAHLEN[2])
    back = ParallelFilesCorpusConfig(path=str(folder), source_language="de", target_language="en")
    assert Pair(ZAHLEN[2], NUMBERS[2]) in pairs_of(ParallelFilesCorpus(back).documents(folder, silent))


def test_a_sentence_of_one_file_is_not_used_again_in_a_catalogue(folder):
    documents = ParallelFilesCorpus(ParallelFilesCorpusConfig(path=str(folder))).documents(folder, silent)
    sources = [pair.source for pair in pairs_of(documents)]
    assert sorted(sources) == sorted(NUMBERS)


def test_files_that_do_not_fit_each_other_are_named(folder):
    (folder / "news.de").write_text(ZAHLEN[0])
    with pytest.raises(DataError, match=r"news.en has 2 lines and news.de has 1; line n"):
        list(ParallelFilesCorpus(ParallelFilesCorpusConfig(path=str(folder))).documents(folder, silent))


def of_lines(tmp_path: Path, source: bytes, target: bytes) -> list[Pair]:
    for name, content in (("a.en", source), ("a.de", target)):
        (tmp_path / name).write_bytes(content)
    return list(align_lines(tmp_path / "a.en", tmp_path / "a.de"))


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", "\n \n\t\r\n", "\n\n\n\n"])
@pytest.mark.parametrize("other_end", ["", "\n", "\n\n\n"])
def test_how_a_file_ends_is_no_difference(tmp_path, end, other_end):
    for source_end, target_end in ((end, other_end), (other_end, end)):
        pairs = of_lines(tmp_path, f"a\nb{source_end}".encode(), f"x\ny{target_end}".encode())
        assert read_pairs(write_pairs(pairs)) == [Pair("a", "x"), Pair("b", "y")]


def test_windows_line_ends_and_byte_order_marks_are_no_text(tmp_path):
    pairs = of_lines(tmp_path, b"\xef\xbb\xbfa\r\nb\r\n", b"x\ny\n")
    assert read_pairs(write_pairs(pairs)) == [Pair("a", "x"), Pair("b", "y")]


@pytest.mark.parametrize("mark", ["\f", "\v", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_nothing_but_a_line_feed_ends_a_line_on_either_side(tmp_path, mark):
    source, target = f"a{mark}b\nc\n".encode(), b"x y\nz\n"
    assert read_pairs(write_pairs(of_lines(tmp_path, source, target))) == [Pair("a b", "x y"), Pair("c", "z")]
    assert read_pairs(write_pairs(of_lines(tmp_path, target, source))) == [Pair("x y", "a b"), Pair("z", "c")]


def test_a_blank_last_line_has_its_place(tmp_path):
    assert of_lines(tmp_path, b"a\n\n", b"x\ny\n") == [Pair("a", "x"), Pair("", "y")]


@pytest.mark.parametrize("target", [b"x\ny\n", b"x\ny", b"x\n", b"", b"x\ny\nz\nw"])
def test_a_line_of_text_without_a_counterpart_is_refused(tmp_path, target):
    with pytest.raises(DataError, match=rf"a.en has 3 lines and a.de has {len(target.split())}; line n"):
        of_lines(tmp_path, b"a\nb\nc", target)


def test_a_file_whose_lines_end_in_carriage_returns_alone_comes_with_the_way_out(tmp_path):
    with pytest.raises(
        DataError, match=r"2 lines and a.de has 1; .*carriage return alone does not end a line: .*tr"
    ):
        of_lines(tmp_path, b"a\nb\n", b"x\ry\r")


def test_what_is_left_out_of_a_folder_of_translations_is_reported(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.en").write_text(
        "nine ten eleven\n\nfour five six\none two\none two three four"
    )
    (tmp_path / "elsewhere" / "far.de").write_text("neun zehn elf\nx y z\nvier fünf sechs\neins zwei\nx y z")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "alone.de").write_text("allein")
    os.mkfifo(folder / "pipe.en")
    reports: list[str] = []
    config = ParallelFilesCorpusConfig(path=str(folder))
    documents = list(ParallelFilesCorpus(config).documents(folder, reports.append))
    assert [document.name for document in documents] == ["linked/far", "news", "po/de.po"]
    assert {report.removeprefix("left out of the corpus: ") for report in reports} == {
        f"pipes, sockets and devices, which are not regular files (1; the first is {folder}/pipe.en)",
        f"files without their translation beside them (1; the first is {folder}/alone.de)",
        f"lines whose translation is blank (1; the first is {folder}/linked/far.en)",
        "pairs with a side of fewer than data.corpus.min_words=3 words (1; the first is in linked/far: 'one two')",
        "pairs with a side more than 3 times as long as the other "
        "(1; the first is in linked/far: 'one two three four')",
        "pairs whose source sentence occurred before (2; the first is in news: 'four five six')",
    }


def test_a_folder_without_such_pairs_says_what_it_needs(folder):
    config = ParallelFilesCorpusConfig(path=str(folder), target_language="fr")
    with pytest.raises(DataError, match=r"holds no pairs of en and fr .* catalogues such as fr.po"):
        list(ParallelFilesCorpus(config).documents(folder, silent))
    missing = ParallelFilesCorpusConfig(path=str(folder / "no"))
    with pytest.raises(DataError, match=r"there is no such folder"):
        list(ParallelFilesCorpus(missing).documents(folder, silent))


def test_token_files_hold_both_sides_of_every_pair_and_nothing_of_one_is_on_both_sides_of_the_split(
    folder, tmp_path
):
    config = DataConfig(corpus=ParallelFilesCorpusConfig(path=str(folder)))
    config.tokenizer.vocab_size = 260  # type: ignore[attr-defined]
    data = prepare(config, tmp_path / "cache", silent)
    assert (data.train.num_documents, data.validation.num_documents) in ((2, 1), (1, 2))
    for stream in (data.train, data.validation):
        lengths = stream.sequence_lengths
        assert len(lengths) == 2 * stream.num_documents
        ends = lengths.cumsum() - 1
        assert (stream.tokens[ends] == EOS_ID).all()
        assert (stream.tokens == EOS_ID).sum() == len(lengths)
    assert prepare(config, tmp_path / "cache", silent).fingerprint == data.fingerprint


def test_the_same_lines_as_plain_text_have_another_fingerprint():
    parallel, plain = DataConfig(corpus=ParallelFilesCorpusConfig(path="x")), DataConfig()
    assert fingerprint([], parallel) != fingerprint([], plain)


def test_data_info_and_build_serve_a_parallel_corpus(folder, tmp_path, capsys):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"data:\n  corpus: {{kind: parallel_files, path: {folder}}}\n  tokenizer: {{vocab_size: 260}}\n"
        "model: {architecture: encoder_decoder}\nobjective: {kind: translation}\n"
    )
    assert main(["build", str(recipe)], str(tmp_path / "cache")) == 0
    printed = capsys.readouterr().out
    assert "pairs        3 (" in printed
    assert "corpus       parallel_files source_language=en target_language=de" in printed
    assert main(["info", str(recipe)], str(tmp_path / "cache")) == 0
    assert "<eos>" in capsys.readouterr().out


def debian_roots(tmp_path: Path) -> tuple[Path, Path]:
    english, german = tmp_path / "en", tmp_path / "de"
    for root, language, title in ((english, "en-US", NUMBERS[0]), (german, "de", ZAHLEN[0])):
        page = root / f"usr/share/libreoffice/help/{language}/text/a.html"
        page.parent.mkdir(parents=True)
        page.write_text(f"<p>{title}</p>")
    messages = german / "usr/share/locale/de/LC_MESSAGES"
    messages.mkdir(parents=True)
    catalogue({NUMBERS[1]: ZAHLEN[1]}).save_as_mofile(str(messages / "git.mo"))
    return english, german


def test_debian_packages_give_pages_and_catalogues(tmp_path):
    roots = debian_roots(tmp_path)
    assert list(read_source("libreoffice-help", "de", roots, LeftOut())) == [
        Document(
            "libreoffice-help/usr/share/libreoffice/help/en-US/text/a.html", f"{NUMBERS[0]}\t{ZAHLEN[0]}"
        )
    ]
    assert list(read_source("git", "de", roots, LeftOut())) == [
        Document("git/git", f"{NUMBERS[1]}\t{ZAHLEN[1]}")
    ]


def test_packages_are_fetched_once_and_kept_with_version_hash_and_licence(tmp_path, monkeypatch):
    english, german = debian_roots(tmp_path)
    fetched = []

    def fetch(name: str, folder: Path) -> apt.Package:
        fetched.append(name)
        (german if name.endswith("-de") else english).rename(folder / name)
        return apt.Package("1.0", "ab")

    monkeypatch.setattr(apt, "fetch", fetch)
    config = ParallelDebianCorpusConfig(
        sources=["libreoffice-help"], source_language="de", target_language="en"
    )
    for _ in range(2):
        documents = ParallelDebianCorpus(config).documents(tmp_path / "cache", silent)
        assert pairs_of(documents) == [Pair(ZAHLEN[0], NUMBERS[0])]
    assert fetched == ["libreoffice-help-en-us", "libreoffice-help-de"]
    folder = tmp_path / "cache" / "parallel" / "libreoffice-help-en-de"
    facts = obtain(folder, lambda unfinished: {}, silent)
    assert facts["packages"]["libreoffice-help-de"] == {"version": "1.0", "sha256": "ab"}
    assert facts["licence"] == "MPL-2.0"


def test_sources_that_are_unknown_cannot_be_fetched_or_hold_nothing_are_named(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"sources: nonsense is not one of the sources .* choose from debian-handbook"
    ):
        ParallelDebianCorpus(ParallelDebianCorpusConfig(sources=["nonsense"])).documents(tmp_path, silent)
    monkeypatch.setattr(parallel_debian.apt, "fetch", lambda name, folder: apt.Package("2.0", "cd"))
    corpus = ParallelDebianCorpus(ParallelDebianCorpusConfig(sources=["git"]))
    with pytest.raises(DataError, match=r"git has no pairs of en and de in .* folders \(packages git 2.0\)"):
        list(corpus.documents(tmp_path, silent))
    monkeypatch.undo()
    monkeypatch.setattr(apt.shutil, "which", lambda tool: None)
    with pytest.raises(DataError, match=r"needs apt-get, which is not installed on this machine"):
        list(corpus.documents(tmp_path, silent))


def recipe_with(corpus) -> Recipe:
    return Recipe(data=DataConfig(corpus=corpus))


@pytest.mark.parametrize(
    ("corpus", "key"),
    [
        (ParallelFilesCorpusConfig(), "data.corpus.path"),
        (ParallelFilesCorpusConfig(path="x", target_language="en"), "data.corpus.target_language"),
        (ParallelFilesCorpusConfig(path="x", min_words=0), "data.corpus.min_words"),
        (ParallelDebianCorpusConfig(target_language="es"), "data.corpus.target_language"),
        (
            ParallelDebianCorpusConfig(source_language="fr", target_language="de"),
            "data.corpus.target_language",
        ),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_starts(corpus, key):
    assert key in [problem.key for problem in problems(recipe_with(corpus))]
