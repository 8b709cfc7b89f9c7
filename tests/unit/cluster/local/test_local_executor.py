"""What can be asked of a job on this machine that is another user's."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError
from moe_cluster.linux import start_time
from moe_cluster.local.executor import LocalExecutor


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """That other users can read: pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_another_users_job_cannot_be_cancelled_and_that_is_said(open_folder: Path) -> None:
    (open_folder / "jobs").mkdir()
    job = {"host": socket.gethostname(), "pid": 1, "start_time": start_time(1)}
    (open_folder / "jobs/a.json").write_text(json.dumps(job))
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(ClusterError, match="local:a: is process 1 of another user"):
            LocalExecutor({}).cancel("a", open_folder)
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
