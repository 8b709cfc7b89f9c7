"""A user whom the system does not know and who has no HOME, as containers run programs."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require_tool, skip_or_fail
from small_run import Command

from moe_cluster.ray.rest import authorization
from moe_cluster.sites import sites_file
from moe_kernels.build import cache_folder
from moe_kernels.errors import KernelError
from moe_train.config.kinds.data import FilesCorpusConfig, HuggingFaceCorpusConfig
from moe_train.config.kinds.parallel_corpus import ParallelFilesCorpusConfig
from moe_train.data.cache import cache_dir
from moe_train.data.corpora.files import FilesCorpus
from moe_train.data.corpora.huggingface import HuggingFaceCorpus
from moe_train.data.corpora.parallel_files import ParallelFilesCorpus
from moe_train.errors import DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: object) -> None:
        raise KeyError(name)

    for variable in ("HOME", "XDG_CONFIG_HOME", "MOE_TRAIN_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize("override", [None, "", "~/cache", "~no-such-user/cache"])
def test_a_cache_in_a_home_that_is_not_there_names_both_variables(
    homeless: None, override: str | None
) -> None:
    with pytest.raises(
        DataError, match=r"MOE_TRAIN_CACHE=.*there is no such home folder \(HOME=.*set MOE_TRAIN_CACHE"
    ):
        cache_dir(override)


def test_a_cache_that_is_named_needs_no_home(homeless: None, tmp_path: Path, monkeypatch) -> None:
    assert cache_dir(str(tmp_path)) == tmp_path
    with pytest.raises(KernelError, match="set MOE_TRAIN_CACHE or HOME"):
        cache_folder()
    monkeypatch.setenv("MOE_TRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "kernels"


@pytest.mark.parametrize(
    "corpus",
    [
        FilesCorpus(FilesCorpusConfig(path="~/texts")),
        FilesCorpus(FilesCorpusConfig(path="~no-such-user/**/*.txt")),
        ParallelFilesCorpus(ParallelFilesCorpusConfig(path="~/pairs")),
        HuggingFaceCorpus(HuggingFaceCorpusConfig(path="~/set")),
    ],
)
def test_text_in_a_home_that_is_not_there_is_refused(homeless: None, tmp_path: Path, corpus) -> None:
    with pytest.raises(
        DataError, match=r"data\.corpus\.path=~.*no such home folder \(HOME=\); write the path without ~"
    ):
        list(corpus.documents(tmp_path, lambda sentence: None))


def test_settings_that_would_be_in_a_home_are_as_good_as_absent(homeless: None) -> None:
    assert not sites_file({}).exists()
    assert authorization({}) == {}


def test_a_run_by_an_unknown_user_trains_where_its_cache_is_named(
    moe_train: Command, folder: Path, tmp_path: Path
) -> None:
    unknown = [
        require_tool("unshare", "util-linux"),
        "--user",
        "--map-user=12345",
        "--map-group=12345",
        "env",
        "-u",
        "HOME",
        "-u",
        "USER",
        "-u",
        "LOGNAME",
    ]
    if subprocess.run([*unknown, "true"], capture_output=True).returncode != 0:
        skip_or_fail("user namespaces cannot be made here")
    command = [sys.executable, "-m", "moe_train.cli", "run", "small.yaml", "--run-dir", str(tmp_path / "run")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cluster", ROOT / "kernels"))),
    }
    done = subprocess.run(
        [*unknown, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    nowhere = [*unknown, "-u", "MOE_TRAIN_CACHE", *command[:-1], str(tmp_path / "other")]
    done = subprocess.run(nowhere, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "set MOE_TRAIN_CACHE or HOME" in done.stderr
    assert "Traceback" not in done.stderr
