"""`moe-train run` where the shell, the host or the working directory is not what a laptop's is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import skip_or_fail
from fresh_cache import fresh_cache
from small_run import RECIPE, lay_traps, write_corpus

MOE_TRAIN = [sys.executable, "-P", "-m", "moe_train.cli"]
# What a pod or a job's shell may tell of a worker that `moe-train` is not.
OTHERS = {
    **{"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    **{"TORCHELASTIC_RUN_ID": "other", "PET_NNODES": "2", "PET_NODE_RANK": "1", "PYTHON_EXEC": "/bin/false"},
    **{"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "PMI_RANK": "3", "PMI_SIZE": "8"},
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "PMIX_RANK": "3", "MV2_COMM_WORLD_RANK": "3"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "small.yaml").write_text(RECIPE.format(corpus=tmp_path / "corpus"))
    return tmp_path


def train(
    folder: Path, workers: int, *, cwd: Path | None = None, prefix: tuple[str, ...] = (), **more: str
) -> None:
    """Train the small recipe to its end within a minute, and with so many workers."""
    command = [*prefix, *MOE_TRAIN, "run", str(folder / "small.yaml"), "--run-dir", str(folder / "run")]
    command += ["--workers", str(workers), "job.timeout_s=60"]
    environment = {**os.environ, "MOE_TRAIN_CACHE": str(fresh_cache(folder)), "OMP_NUM_THREADS": "1", **more}
    ended = subprocess.run(
        command, cwd=cwd or folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (folder / "run/finished.json").exists()
    assert len(list((folder / "run/attempts/1").glob("rank-*"))) == workers


@pytest.mark.parametrize("workers", [1, 2])
def test_variables_of_other_launchers_and_modules_of_the_working_directory_have_no_effect(
    folder: Path, workers: int
) -> None:
    """A variable that was heeded would make a worker of the command; a module that was imported ends it."""
    shadow = folder / "shadow"
    shadow.mkdir()
    lay_traps(shadow)
    train(folder, workers, cwd=shadow, **OTHERS)


def test_workers_of_one_host_need_no_name_of_it(folder: Path) -> None:
    alone = ("unshare", "--uts", "sh", "-c", 'hostname nosuchhost-xyz && exec "$@"', "sh")
    try:
        subprocess.run([*alone, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        skip_or_fail(f"a host of another name cannot be made here (unshare --uts, hostname: {error})")
    train(folder, 2, prefix=alone)
