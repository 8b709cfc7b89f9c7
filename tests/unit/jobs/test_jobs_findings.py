"""`moe-train status` of a run whose launcher has found out something about its workers or nodes."""

from pathlib import Path

from moe_cluster.contract import attempt_dir
from moe_cluster.node import bad_nodes
from moe_cluster.watch.findings import Straggler, record
from moe_train.config.schema import Recipe
from moe_train.jobs.standing import read_progress
from moe_train.run_folder import RunFolder


def test_a_straggler_is_told_as_long_as_its_attempt_runs(tmp_path: Path) -> None:
    straggler = Straggler(
        rank=1, host="node2", where="moe/layers/layer.py:9 forward", waiting=0.8, seconds=60.0
    )
    with RunFolder(tmp_path / "run") as folder:
        number = folder.new_attempt(Recipe())
        record(attempt_dir(folder.path, number), straggler)
        running = read_progress(folder.path, ask=False)
        assert (running.state, running.said) == ("running", str(straggler))
        bad_nodes.record(attempt_dir(folder.path, number), {"node3": "its disk is full"})
        assert (
            read_progress(folder.path, ask=False).said == f"node3 is excluded: its disk is full; {straggler}"
        )
    assert read_progress(folder.path, ask=False).said == ""
