"""What submitting to this machine does where its files cannot be written: a limit on their size is a disk's end."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError
from moe_cluster.job import JobSpec
from moe_cluster.local.executor import LocalExecutor

CLUSTER = Path(__file__).parents[4] / "cluster"
SUBMIT = """
import sys
from pathlib import Path
from moe_cluster.errors import ClusterError
from moe_cluster.job import JobSpec
from moe_cluster.local.executor import LocalExecutor
try:
    LocalExecutor({}).submit(JobSpec("small", Path(sys.argv[1]), ("run", "small.yaml")))
except ClusterError as error:
    print(error)
"""


def test_a_job_whose_file_does_not_fit_is_one_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(CLUSTER), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{tmp_path}/jobs/" in done.stdout, done.stderr
    assert ".json: cannot be written (File too large)" in done.stdout
    assert "nothing was submitted" in done.stdout
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "jobs").touch()
    with pytest.raises(ClusterError, match=r"jobs: cannot be created .*nothing was submitted"):
        LocalExecutor({}).submit(JobSpec("small", tmp_path, ("run", "small.yaml")))
