"""A small run, and the command line to treat it badly with."""

import shutil
from pathlib import Path

import pytest
from small_run import RECIPE, Command, Ended, environment, last_validation, train_alone, write_corpus

from moe_train import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a recipe, its corpus, and corpora that cannot be used."""
    path = tmp_path_factory.mktemp("bad_input")
    write_corpus(path / "corpus")
    for name in ("bytes", "alone", "nothing"):
        (path / name).mkdir()
    (path / "bytes/a.txt").write_bytes(b"\xff\xfe\x80" * 50)
    (path / "alone/a.txt").write_text("hello " * 500)
    (path / "small.yaml").write_text(RECIPE.format(corpus=path / "corpus"))
    (path / "binary.yaml").write_bytes(b"\x93NUMPY\x01\x00\xff" * 20)
    (path / "list.yaml").write_text("- a\n- b\n")
    (path / "folder.yaml").mkdir()
    return path


@pytest.fixture
def moe_train(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs one command in the working directory."""
    monkeypatch.chdir(folder)
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 2, 4 and 6; tests work on copies."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train_alone(folder, run_dir)
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may harm."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The validation loss at step 8 of a run that was never harmed."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    train_alone(folder, run_dir, "steps=8")
    return last_validation(run_dir)
