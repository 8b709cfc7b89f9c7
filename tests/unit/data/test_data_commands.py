"""What `moe-train data build` and `data info` print."""

from pathlib import Path

import pytest

from moe_train.data.commands import main
from moe_train.errors import DataError, RecipeError


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(4):
        (texts / f"{number}.txt").write_text(f"Sample text {number} for everyone.\n" * 10)
    path = tmp_path / "small.yaml"
    path.write_text(f"data:\n  corpus: {{path: {texts}}}\n  tokenizer: {{vocab_size: 262}}\n")
    return str(path)


def lines(printed: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in printed.splitlines())


def test_info_before_building_says_what_there_is_and_how_to_build_it(recipe, tmp_path, capsys):
    assert main(["info", recipe], str(tmp_path / "cache")) == 0
    printed = lines(capsys.readouterr().out)
    assert printed["documents"] == "4"
    assert printed["bytes"] == "1,120"
    assert printed["split"] == "3 training, 1 validation documents"
    assert printed["tokens"].startswith("not built yet")
    assert not (tmp_path / "cache").exists()


def test_build_reports_progress_on_stderr_and_figures_on_stdout(recipe, tmp_path, capsys):
    assert main(["build", recipe], str(tmp_path / "cache")) == 0
    printed = capsys.readouterr()
    figures = lines(printed.out)
    assert figures["corpus"].startswith("files path=")
    assert len(figures["fingerprint"]) == 64
    assert figures["cache"] == str(tmp_path / "cache" / "tokens" / figures["fingerprint"][:32])
    assert "learning 262 tokens from 3 of 4 documents" in printed.err


def test_info_after_building_shows_a_sample_and_notices_damage(recipe, tmp_path, capsys):
    main(["build", recipe], str(tmp_path / "cache"))
    built = lines(capsys.readouterr().out)
    assert main(["info", recipe], str(tmp_path / "cache")) == 0
    printed = lines(capsys.readouterr().out)
    assert printed["sample"].startswith("'Sample text ")
    assert {name: printed[name] for name in built} == built
    (Path(built["cache"]) / "train.bin").write_bytes(b"")
    assert main(["info", recipe], str(tmp_path / "cache")) == 0
    assert lines(capsys.readouterr().out)["tokens"].startswith("damaged (train.bin")


def test_overrides_reach_the_recipe_and_its_rules(recipe, tmp_path, capsys):
    main(["info", recipe, "data.validation_fraction=0.5"], str(tmp_path / "cache"))
    assert lines(capsys.readouterr().out)["split"] == "2 training, 2 validation documents"
    with pytest.raises(RecipeError, match=r"data\.validation_fraction=2"):
        main(["info", recipe, "data.validation_fraction=2"], str(tmp_path / "cache"))
    with pytest.raises(DataError, match="no such file or folder"):
        main(["build", recipe, f"data.corpus.path={tmp_path / 'nowhere'}"], str(tmp_path / "cache"))


def test_wrong_arguments_are_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bild"], None)
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
