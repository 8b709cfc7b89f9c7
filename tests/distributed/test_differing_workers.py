"""Two workers that were started with different recipes, as torchrun may start them: both name what differs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_cache import fresh_cache
from launched_run import RECIPE, ROOT

from moe_cluster.contract import ATTEMPT_VARIABLE, USAGE, rank_dir
from moe_train.config.load import load_recipe, to_yaml


@pytest.mark.distributed_exhaustive
def test_workers_with_different_recipes_end_before_they_train(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = []
    for rank, lr in enumerate(("0.001", "0.002")):
        recipe = tmp_path / f"{rank}.yaml"
        recipe.write_text(to_yaml(load_recipe(tmp_path / "small.yaml", [f"optim.lr={lr}"])))
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), ATTEMPT_VARIABLE: "1", "PYTHONPATH": path}
        command = [sys.executable, "-P", "-m", "moe_train.worker", str(recipe), "--run-dir", str(tmp_path)]
        environment = {**os.environ, **meeting, **place, "MOE_TRAIN_CACHE": str(fresh_cache(tmp_path))}
        workers.append(subprocess.Popen(command, env=environment))
    assert [worker.wait(timeout=240) for worker in workers] == [USAGE, USAGE]
    for rank in range(2):
        error = json.loads((rank_dir(tmp_path, 1, rank) / "error.json").read_text())
        assert error["message"] == (
            f"optim.lr=0.001: must be the same on all workers, but is 0.002 on rank 1 on {socket.gethostname()}; start "
            "all workers with the same recipe"
        )
