"""Help shows every argument that a command takes, and a wrong word is answered with what it may have meant."""

import re
from pathlib import Path

import pytest

from moe_train.arguments import Parser, add_overrides, parse_with_overrides
from moe_train.cli import main
from moe_train.errors import UsageError

RECIPE = str(Path(__file__).parents[3] / "recipes" / "switch" / "tiny.yaml")
TAKE_OVERRIDES = ("run", "show", "submit", "resume", "sweep", "data build", "data info", "translate")


@pytest.mark.parametrize("command", TAKE_OVERRIDES)
def test_help_shows_that_a_command_takes_overrides(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert "[key=value ...]" in usage
    assert re.search(r"^  key=value +override a key of ", rest, re.MULTILINE)


def test_overrides_may_stand_anywhere_among_options() -> None:
    parser = Parser("x")
    parser.add_argument("recipe")
    add_overrides(parser, "override a key")
    parser.add_argument("--nodes")
    for words in ("r a=1 b=2 --nodes 3", "r a=1 --nodes 3 b=2", "--nodes 3 r a=1 b=2", "r --nodes=3 a=1 b=2"):
        options = parse_with_overrides(parser, words.split())
        assert (options.recipe, options.overrides, options.nodes) == ("r", ["a=1", "b=2"], "3")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", RECIPE, "--wrokers", "3"], "--wrokers: there is no such option; did you mean --workers?"),
        (["show", RECIPE, "--jsno"], "did you mean --json?; see moe-train show --help"),
        (["submit", RECIPE, "--dri-run"], "did you mean --dry-run?; see moe-train submit --help"),
        (["sweep", RECIPE, "--atonce=1"], "--atonce: there is no such option; did you mean --at-once?"),
        (["data", "build", RECIPE, "--x"], "--x: there is no such option; see moe-train data build --help"),
        (["translate", "x", "--stepp", "1"], "did you mean --step?"),
        (["status", "x", "--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        (["logs", "x", "--folow"], "did you mean --follow?"),
        (["ckpt", "gc", "x", "--dryrun"], "did you mean --dry-run?"),
        (["ckpt", "verfy", "x"], "; did you mean verify?"),
        (["shwo", "x"], "; did you mean show?"),
        (["submit", RECIPE, "--cluster", "slrum"], "; did you mean slurm?"),
    ],
)
def test_a_wrong_option_or_command_comes_with_what_it_may_have_meant(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as end:  # argparse
        code = end.code
    assert code == UsageError.exit_code
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("written", ["[0,1]", "[0, 1]", "{0,1}", "(0,1)"])
def test_a_sweep_says_how_several_values_are_written(
    written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", RECIPE, f"seed={written}"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "must be a whole number" in said
    assert "write several values with commas and without brackets: seed=0,1)" in said


def test_a_sweep_says_nothing_of_brackets_where_a_list_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", RECIPE, "moe.layers=[0,1]"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "no key has several values" in said
    assert "without brackets" not in said
