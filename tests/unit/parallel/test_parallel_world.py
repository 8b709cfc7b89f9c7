"""How workers meet: what a worker says that cannot reach the others."""

import socket

import pytest

from moe_train.errors import RunError
from moe_train.parallel.world import World


def test_a_worker_that_cannot_reach_the_store_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens here, and nobody else will
        port = str(taken.getsockname()[1])
        place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in {**place, "TORCH_FR_BUFFER_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RunError) as refused:
            World.from_env("cpu", timeout_s=1.0)
    assert f"rank 1 on {socket.gethostname()} cannot reach the workers' store at 127.0.0.1:{port}" in str(
        refused.value
    )
    assert "firewalls and routes" in str(refused.value)
