"""How often, and how soon, a run that failed is started again."""

import json
from pathlib import Path

import pytest

from moe_cluster.contract import DONE, FAILED, PREEMPTED
from moe_cluster.node import bad_nodes
from moe_cluster.restarts import LONGEST_WAIT_S, Restarts, lost_attempts, record_loss, stops_in_vain


def test_without_restarts_the_first_failure_is_the_last() -> None:
    assert Restarts(0).after_failure(-1) is None


def test_failures_in_a_row_wait_longer_and_are_limited() -> None:
    restarts = Restarts(4)
    assert [restarts.after_failure(-1) for _ in range(5)] == [0.0, 1.0, 2.0, 4.0, None]


def test_no_wait_is_longer_than_the_longest() -> None:
    restarts = Restarts(50)
    assert [restarts.after_failure(100) for _ in range(50)][-1] == LONGEST_WAIT_S


def test_a_new_checkpoint_starts_the_count_afresh() -> None:
    restarts = Restarts(2)
    assert [restarts.after_failure(step) for step in (-1, 10, 10, 20, 20, 20)] == [
        0.0,
        0.0,
        1.0,
        0.0,
        1.0,
        None,
    ]


def test_an_older_checkpoint_is_no_progress() -> None:
    restarts = Restarts(1)
    assert [restarts.after_failure(step) for step in (20, 10)] == [0.0, None]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([], 0),
        ([(PREEMPTED, None), (PREEMPTED, None)], 2),
        ([(PREEMPTED, 10)], 0),
        ([(PREEMPTED, 10), (PREEMPTED, 10), (PREEMPTED, 10)], 2),
        ([(PREEMPTED, 10), (PREEMPTED, 10), (PREEMPTED, 20)], 0),
        ([(PREEMPTED, 10), (FAILED, 10), (PREEMPTED, 10)], 1),
        ([(PREEMPTED, 10), (PREEMPTED, 10), (FAILED, 10)], 0),
    ],
)
def test_stops_without_a_newer_checkpoint_are_counted(
    tmp_path: Path, ends: list[tuple[int, int | None]], expected: int
) -> None:
    for number, (exit_code, saved) in enumerate(ends, start=9):
        folder = tmp_path / f"attempts/{number}"
        folder.mkdir(parents=True)
        (folder / "outcome.json").write_text(json.dumps({"exit_code": exit_code, "saved": saved}))
    (tmp_path / f"attempts/{9 + len(ends)}").mkdir(parents=True)  # one whose end nobody saw
    assert stops_in_vain(tmp_path) == expected


def test_an_outcome_that_a_dying_node_left_empty_is_none(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"attempts/{number}").mkdir(parents=True)
    (tmp_path / "attempts/1/outcome.json").write_text(json.dumps({"exit_code": PREEMPTED, "saved": None}))
    (tmp_path / "attempts/2/outcome.json").write_text("")
    assert stops_in_vain(tmp_path) == 1


def test_attempts_are_lost_after_which_their_job_was_started_again_unless_it_was_asked_for(
    tmp_path: Path,
) -> None:
    ends = {8: None, 9: FAILED, 10: PREEMPTED, 11: DONE, 12: None, 13: None, 14: FAILED}
    for number, exit_code in ends.items():
        folder = tmp_path / f"attempts/{number}"
        folder.mkdir(parents=True)
        if exit_code is not None:
            (folder / "outcome.json").write_text(json.dumps({"exit_code": exit_code}))
        record_loss(tmp_path, number, "slurm:8" if number == 12 else "slurm:7")
    bad_nodes.record(tmp_path / "attempts/14", {"node2": "is full"})
    (tmp_path / "attempts/15").mkdir()  # which goes on
    assert lost_attempts(tmp_path, "slurm:7") == [8, 9, 13]
    assert lost_attempts(tmp_path, "slurm:8") == [12]
