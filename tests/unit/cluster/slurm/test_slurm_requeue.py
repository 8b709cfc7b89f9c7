"""A job that goes back to Slurm's queue for other nodes: what Slurm is told, and when not. tests/cluster does it for
real."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError
from moe_cluster.slurm.requeue import queue_again_without
from moe_cluster.stop import StopRequest

SCONTROL = """\
#!/bin/bash
if [ "$1" = show ]; then tr , '\\n' <<<"$3"; exit; fi
echo "$*" >>{calls}
[ "$1" != {refused} ] || {{ echo "scontrol: error: no" >&2; exit 1; }}
"""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Puts commands like Slurm's on PATH, for a job that excludes some nodes; returns where calls are noted."""

    def install(excluded: str, refused: str = "nothing") -> Path:
        calls = tmp_path / "calls"
        for name, text in (
            ("scontrol", SCONTROL.format(calls=calls, refused=refused)),
            ("squeue", f"#!/bin/bash\necho '{excluded}'\n"),
        ):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return calls

    return install


@pytest.mark.parametrize(("excluded", "names"), [("(null)", "node2"), ("node7", "node7,node2")])
def test_where_the_run_needs_it_the_job_is_queued_again_for_other_nodes(
    slurm: Callable[..., Path], excluded: str, names: str
) -> None:
    calls, told, asked = slurm(excluded), [], StopRequest(is_requested=True)
    queue_again_without({"node2": "its disk is full"}, "7", asked, told.append)
    assert calls.read_text().splitlines() == [
        "requeuehold 7",
        f"update JobId=7 ExcNodeList={names}",
        "release 7",
    ]
    assert told == [f"the job is queued again, with {names} excluded"]


def test_a_job_that_got_an_excluded_node_again_is_not_queued_for_ever(slurm: Callable[..., Path]) -> None:
    calls = slurm("node2")
    with pytest.raises(
        ClusterError, match="got node2 again, although it excludes that node; repair it: its disk is full"
    ):
        queue_again_without({"node2": "its disk is full"}, "7", StopRequest(), print)
    assert not calls.exists()


def test_a_job_that_may_not_exclude_a_node_stays_held_and_says_so(slurm: Callable[..., Path]) -> None:
    calls = slurm("(null)", refused="update")
    with pytest.raises(
        ClusterError, match=r"is held, because it cannot exclude node2 .*`scontrol release 7`"
    ):
        queue_again_without({"node2": "its disk is full"}, "7", StopRequest(), print)
    assert "release 7" not in calls.read_text()
