"""Which rank is named when several failed."""

import json
from pathlib import Path

import pytest

from moe_cluster.watch.first_cause import Ending, FirstCause, find_first_cause, read_endings, was_preempted

CLOSED = "[pair.cc:553] Connection closed by peer [127.0.0.1]:429. This is typically caused by a crash"
REPORT = """\
Failures:
[1]:
  time      : 2026-11-21_23:18:19
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 5201)  (SIGTERM)
  error_file: <N/A>
------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_23:18:19
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 5202)  (SIGKILL)
  error_file: <N/A>
"""


def leave_error(
    attempt: Path, rank: int, time: float, message: str, kind: str = "RuntimeError", code: int = 1
) -> None:
    folder = attempt / f"rank-{rank}"
    folder.mkdir(parents=True)
    facts = {"rank": rank, "host": "h", "pid": 1, "step": 4, "time": time, "exit_code": code}
    (folder / "error.json").write_text(
        json.dumps({**facts, "type": kind, "message": message, "traceback": "T"})
    )


def test_the_report_of_torch_elastic_is_read_first_failure_first(tmp_path: Path) -> None:
    (tmp_path / "launcher.log").write_text(REPORT)
    assert read_endings(tmp_path / "launcher.log") == [Ending(1, -9), Ending(0, -15)]


def test_a_closed_connection_is_a_consequence_even_if_it_was_written_first(tmp_path: Path) -> None:
    leave_error(tmp_path, 0, time=1.0, message=CLOSED)
    leave_error(tmp_path, 1, time=2.0, message="loss is not finite\nmore", kind="TrainingError")
    cause = find_first_cause(tmp_path, [Ending(0, 1), Ending(1, 1)])
    assert str(cause) == (
        "rank 1 on h failed after step 4: TrainingError: loss is not finite\n"
        f"  see {tmp_path / 'rank-1' / 'log.txt'}"
    )


def test_of_two_original_errors_the_earlier_is_named(tmp_path: Path) -> None:
    leave_error(tmp_path, 0, time=9.0, message="late")
    leave_error(tmp_path, 1, time=8.0, message="early", kind="DataError", code=2)
    cause = find_first_cause(tmp_path, [Ending(0, 1), Ending(1, 2)])
    assert (cause.rank, cause.error, cause.exit_code) == (1, "DataError: early", 2)


def test_a_rank_that_lost_its_peer_in_the_exchange_is_no_cause(tmp_path: Path) -> None:
    lost = "rank 0 of 2 stopped waiting: the process of rank 1 exited before it reached dispatch number 7"
    leave_error(tmp_path, 0, time=1.0, kind="PeerTimeoutError", message=lost)
    leave_error(tmp_path, 1, time=2.0, kind="ZeroDivisionError", message="division by zero")
    assert find_first_cause(tmp_path, [Ending(0, 1), Ending(1, 1)]).rank == 1


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_rank_that_died_without_a_word_is_named_with_its_signal(tmp_path: Path, order: list[int]) -> None:
    leave_error(tmp_path, 0, time=1.0, message=CLOSED)
    codes = {0: 1, 1: -11}
    cause = find_first_cause(tmp_path, [Ending(rank, codes[rank]) for rank in order])
    assert cause.rank == 1
    assert cause.error == "it was killed by SIGSEGV"
    assert cause.log == tmp_path / "launcher.log"


def test_a_rank_that_hangs_is_said_not_to_answer(tmp_path: Path) -> None:
    leave_error(tmp_path, 0, time=1.0, message="[buffer.cc:129] Timed out waiting 6000ms for send operation")
    cause = find_first_cause(tmp_path, [Ending(0, 1), Ending(1, -9)])
    assert cause.rank == 1
    assert cause.error.startswith(
        "it did not answer until rank 0 timed out after job.timeout_s, and was then"
    )


def test_a_rank_that_does_not_answer_is_named_with_its_last_place(tmp_path: Path) -> None:
    leave_error(tmp_path, 0, time=1.0, message="[buffer.cc:129] Timed out waiting 6000ms for send operation")
    (tmp_path / "rank-1").mkdir()
    beat = {"host": "h", "step": 7, "where": "moe/layers/layer.py:9 forward"}
    (tmp_path / "rank-1/heartbeat.json").write_text(json.dumps(beat))
    cause = find_first_cause(tmp_path, [Ending(0, 1), Ending(1, -9)])
    assert cause.error.startswith(
        "it did not answer (last seen at moe/layers/layer.py:9 forward) until rank 0 timed out"
    )


def test_the_sigterm_that_torch_elastic_sends_is_no_cause(tmp_path: Path) -> None:
    leave_error(tmp_path, 1, time=1.0, message=CLOSED)
    cause = find_first_cause(tmp_path, [Ending(1, 1), Ending(0, -15)])
    assert cause.rank == 1


def test_a_rank_that_the_others_lost_and_nobody_tells_of_is_named_with_its_node(tmp_path: Path) -> None:
    leave_error(tmp_path, 0, time=1.0, message=CLOSED)
    for rank in (0, 1):
        (tmp_path / f"rank-{rank}").mkdir(exist_ok=True)
        (tmp_path / f"rank-{rank}/heartbeat.json").write_text(
            json.dumps({"pid": 7, "host": f"n{rank}", "step": 4})
        )
    cause = find_first_cause(tmp_path, [Ending(0, 1)])
    assert str(cause).startswith(
        "rank 1 on n1 failed after step 4: it is gone without an exit code: its node, or"
    )


def test_the_reports_of_several_nodes_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "launcher.log").write_text("srun: error: node2: task 1: Exited with exit code 1\n")
    late = REPORT.replace("rank      : 1", "rank      : 3").replace("rank      : 0", "rank      : 2")
    (tmp_path / "launcher-node1.log").write_text(late.replace(":19\n", ":21\n").replace("localhost", "node1"))
    (tmp_path / "launcher-node2.log").write_text(REPORT.replace("localhost", "node2"))
    found = read_endings(tmp_path)
    assert found == [Ending(1, -9), Ending(3, -9), Ending(2, -15), Ending(0, -15)]
    assert [(ending.host, ending.log) for ending in found[:2]] == [
        ("node2", tmp_path / "launcher-node2.log"),
        ("node1", tmp_path / "launcher-node1.log"),
    ]


def test_without_any_trace_the_launcher_log_is_named(tmp_path: Path) -> None:
    cause = find_first_cause(tmp_path, [])
    assert isinstance(cause, FirstCause)
    assert cause.rank is None
    assert str(cause).startswith("the workers' launcher on ")
    assert cause.log == tmp_path / "launcher.log"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([75, -15], True), ([75, 75], True), ([75, 1], False), ([-15, -15], False), ([], False)],
)
def test_an_attempt_is_preempted_if_all_ended_because_they_were_asked(
    tmp_path: Path, codes: list[int], expected: bool
) -> None:
    endings = [Ending(rank, code) for rank, code in enumerate(codes)]
    assert was_preempted(tmp_path, endings) is expected


def test_an_error_while_saving_is_not_called_preempted(tmp_path: Path) -> None:
    leave_error(tmp_path, 0, time=1.0, message="disk full")
    assert not was_preempted(tmp_path, [Ending(1, 75), Ending(0, -15)])
