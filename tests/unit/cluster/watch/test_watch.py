"""What a launcher concludes from heartbeats: written by hand, seen at the times that a test says."""

import json
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from own_processes import wait_for

from moe_cluster.contract import attempt_dir, rank_dir, requested_end
from moe_cluster.linux import state_of
from moe_cluster.watch.findings import Hang, Straggler, Wait, record, recorded_hang
from moe_cluster.watch.first_cause import find_first_cause
from moe_cluster.watch.watch import Heartbeat, Watch

TRAINS = Heartbeat(
    pid=1,
    host="far",
    time=1.0,
    step=7,
    step_time=1.0,
    phase="training",
    is_paced=True,
    patience_s=10.0,
    where="a.py:1 f",
)
STARTS = replace(TRAINS, phase="starting", is_paced=False, step=None, step_time=None)


def watched(
    watch: Watch, seconds: float, *beats: Heartbeat, start: float = 0.0, silent: tuple[int, ...] = ()
) -> list[Hang | Straggler]:
    """Findings while ranks tell once a second that nothing has changed, but for those that are `silent`."""
    found: list[Hang | Straggler] = []
    for second in range(round(seconds) + 1):
        now = start + second
        seen = {
            rank: beat if rank in silent else replace(beat, time=now + 1) for rank, beat in enumerate(beats)
        }
        found += watch.look(seen, now)
    return found


def waits(beat: Heartbeat, share: float = 1.0) -> Heartbeat:
    return replace(beat, waiting=share, where="w.py:9 all_reduce")


def test_the_rank_that_does_not_wait_is_named_once_the_patience_is_over(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 3)
    beats = (waits(TRAINS), replace(TRAINS, waiting=0.1), waits(TRAINS))
    assert watched(watch, 9, *beats) == []
    (hang,) = watched(watch, 0, *beats, start=10)
    assert isinstance(hang, Hang)
    assert ([suspect.rank for suspect in hang.suspects], hang.step) == ([1], 7)
    assert hang.waiting == (Wait((0, 2), "w.py:9 all_reduce"),)
    assert str(hang) == (
        "the run hangs after step 7: no step for 10 s: rank 1 on far: does not wait for others; it is at a.py:1 f; "
        "ranks 0, 2 wait for it in w.py:9 all_reduce"
    )


def test_ranks_that_wait_are_listed_by_the_collective_and_the_layer_that_they_wait_in(tmp_path: Path) -> None:
    gathers, exchanges = (
        replace(waits(TRAINS), layer="layers.3 backward", collective=collective)
        for collective in ("all_gather over tensor", "all_to_all over expert")
    )
    stopped = replace(TRAINS, layer="layers.3 forward")
    (hang,) = watched(Watch(tmp_path, 1, 4), 10, exchanges, gathers, stopped, exchanges, silent=(2,))
    assert str(hang).endswith(
        "last seen at a.py:1 f of layers.3 forward; its host may be down or cut off; "
        "ranks 0, 3 wait for it in all_to_all over expert at w.py:9 all_reduce of layers.3 backward; "
        "rank 1 waits for it in all_gather over tensor at w.py:9 all_reduce of layers.3 backward"
    )
    attempt_dir(tmp_path, 1).mkdir(parents=True)
    record(attempt_dir(tmp_path, 1), hang)
    assert recorded_hang(attempt_dir(tmp_path, 1))[0] == hang


def test_a_step_of_any_rank_is_progress(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 2)
    for second in range(0, 60, 5):
        stepped = replace(TRAINS, step=second, step_time=float(second))
        assert watched(watch, 4, waits(stepped), replace(TRAINS, waiting=0.6), start=second) == []


def test_a_batch_of_a_validation_is_progress_and_none_for_too_long_a_hang(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 1)
    validates = replace(TRAINS, phase="validating")
    for batch in range(5):
        assert watched(watch, 9, replace(validates, parts=batch), start=10 * batch) == []
    (hang,) = watched(watch, 0, replace(validates, parts=4), start=50)
    assert [suspect.rank for suspect in hang.suspects] == [0]


def test_a_silent_rank_is_named_with_what_this_host_knows_of_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: state_of(process.pid).endswith("is stopped (SIGSTOP)"))
        here = replace(TRAINS, pid=process.pid, host=socket.gethostname())
        (hang,) = watched(Watch(tmp_path, 1, 2), 10, waits(TRAINS), here, silent=(1,))
    finally:
        process.kill()
        process.wait()
    assert str(hang).endswith(
        f"rank 1 on {here.host}: no heartbeat for 10 s; last seen at a.py:1 f; process {process.pid} is stopped "
        "(SIGSTOP); rank 0 waits for it in w.py:9 all_reduce"
    )


def test_a_silent_rank_of_another_host_and_one_that_never_came(tmp_path: Path) -> None:
    (hang,) = watched(Watch(tmp_path, 1, 3), 10, waits(TRAINS), TRAINS, silent=(1,))
    assert [str(suspect) for suspect in hang.suspects] == [
        "rank 1 on far: no heartbeat for 10 s; last seen at a.py:1 f; its host may be down or cut off",
        "rank 2: no heartbeat yet; its host or its start failed",
    ]


def test_ranks_that_all_wait_are_all_named(tmp_path: Path) -> None:
    (hang,) = watched(Watch(tmp_path, 1, 2), 10, waits(TRAINS), waits(TRAINS))
    assert [suspect.rank for suspect in hang.suspects] == [0, 1]
    assert hang.waiting == ()
    assert "rank 0 on far: waits, as all others do; it is at w.py:9 all_reduce" in str(hang)


def test_a_worker_alone_hangs_when_it_makes_no_step(tmp_path: Path) -> None:
    (hang,) = watched(Watch(tmp_path, 1, 1), 10, TRAINS)
    assert str(hang) == (
        "the run hangs after step 7: no step for 10 s: rank 0 on far: does not wait for others; it is at a.py:1 f"
    )


def test_the_most_patient_rank_decides(tmp_path: Path) -> None:
    saves = replace(TRAINS, phase="checkpoint", is_paced=False, patience_s=50.0)
    watch = Watch(tmp_path, 1, 2)
    assert watched(watch, 49, waits(TRAINS), saves) == []
    (hang,) = watched(watch, 0, waits(TRAINS), saves, start=50)
    assert [suspect.rank for suspect in hang.suspects] == [1]


def test_what_a_silent_rank_did_last_does_not_make_others_patient(tmp_path: Path) -> None:
    started = replace(TRAINS, phase="starting", is_paced=False, patience_s=300.0)
    (hang,) = watched(Watch(tmp_path, 1, 2), 10, waits(TRAINS), started, silent=(1,))
    assert [suspect.rank for suspect in hang.suspects] == [1]


def test_before_the_first_step_only_a_wait_for_somebody_is_a_hang(tmp_path: Path) -> None:
    assert watched(Watch(tmp_path, 1, 2), 100, STARTS, STARTS) == []
    (hang,) = watched(Watch(tmp_path, 1, 2), 10, waits(STARTS), STARTS)
    assert str(hang).startswith(
        "the run hangs before the first step: no step for 10 s: rank 1 on far: does not wait"
    )


def test_waits_that_come_and_go_before_the_first_step_are_none(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 2)
    for start in range(0, 60, 12):
        assert watched(watch, 5, waits(STARTS), STARTS, start=start) == []
        assert watched(watch, 5, STARTS, STARTS, start=start + 6) == []


def test_nothing_is_said_before_the_patience_is_known_or_once_a_rank_has_ended_or_failed(
    tmp_path: Path,
) -> None:
    imports = replace(TRAINS, patience_s=None)
    assert watched(Watch(tmp_path, 1, 2), 100, imports, imports) == []
    assert (
        watched(Watch(tmp_path, 1, 2), 100, waits(TRAINS), replace(TRAINS, phase="ended"), silent=(1,)) == []
    )
    folder = rank_dir(tmp_path, 1, 1)
    folder.mkdir(parents=True)
    (folder / "error.json").write_text("{}")
    assert watched(Watch(tmp_path, 1, 2), 100, waits(TRAINS), TRAINS) == []


def stepping(
    seconds: int, *waiting: float, watch: Watch, start: int = 0, every_s: float = 1.0
) -> list[Hang | Straggler]:
    """Findings of a run that makes a step every second, in which ranks wait for these shares of their time."""
    found: list[Hang | Straggler] = []
    for now in (start + every_s * number for number in range(int(seconds / every_s))):
        beats = {
            rank: replace(TRAINS, time=now, step=int(now), step_time=now, waiting=share)
            for rank, share in enumerate(waiting)
        }
        found += watch.look(beats, now)
    return found


@pytest.mark.parametrize("every_s", [0.5, 1.0, 2.49, 2.51, 2.6, 3.4, 5.1])
def test_a_straggler_is_found_however_far_between_looks_are(tmp_path: Path, every_s: float) -> None:
    (straggler,) = stepping(60, 0.7, 0.1, 0.9, watch=Watch(tmp_path, 1, 3), every_s=every_s)
    assert isinstance(straggler, Straggler)
    assert straggler.rank == 1


def test_a_rank_that_is_stopped_again_and_again_is_found_though_it_seems_to_wait_a_little(
    tmp_path: Path,
) -> None:
    (straggler,) = stepping(20, 0.9, 0.4, 1.0, watch=Watch(tmp_path, 1, 3))
    assert (straggler.rank, straggler.waiting) == (1, 0.9)


def test_a_rank_for_which_all_others_wait_is_told_once(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 3)
    assert stepping(8, 0.7, 0.1, 0.9, watch=watch) == []
    (straggler,) = stepping(60, 0.7, 0.1, 0.9, watch=watch, start=8)
    assert isinstance(straggler, Straggler)
    assert (straggler.rank, straggler.waiting, straggler.seconds) == (1, 0.7, 10.0)
    assert str(straggler).startswith(
        "rank 1 on far is slow: for 10 s all other ranks have spent at least 70% of their"
    )


@pytest.mark.parametrize(
    "waiting", [(0.6, 0.4, 0.6), (0.1, 0.1, 0.9), (0.4, 0.1, 0.9), (0.9, 0.9, 0.9), (0.0,)]
)
def test_ranks_that_wait_for_each_other_in_turn_are_no_stragglers(
    tmp_path: Path, waiting: tuple[float, ...]
) -> None:
    assert stepping(60, *waiting, watch=Watch(tmp_path, 1, len(waiting))) == []


def test_a_rank_that_is_the_slowest_now_and_then_is_no_straggler(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 2)
    for start in range(0, 60, 10):
        assert stepping(6, 0.9, 0.1, watch=watch, start=start) == []
        assert stepping(4, 0.1, 0.9, watch=watch, start=start + 6) == []


def leave(run_dir: Path, rank: int, beat: Heartbeat) -> None:
    folder = rank_dir(run_dir, 1, rank)
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: getattr(beat, name) for name in Heartbeat.__dataclass_fields__}
    (folder / "heartbeat.json").write_text(json.dumps({**content, "stop": None}))


def test_a_hang_is_recorded_and_becomes_the_first_cause(tmp_path: Path) -> None:
    leave(tmp_path, 0, replace(waits(TRAINS), patience_s=0.4))
    leave(tmp_path, 1, replace(TRAINS, patience_s=0.4))
    said: list[str] = []
    watch = Watch(tmp_path, 1, 2)
    while not watch.check(said.append):
        time.sleep(0.05)
    assert said == []  # the end of the attempt tells it
    assert watch.check(said.append)  # and so it stays
    assert str(requested_end(tmp_path, 1)).startswith("the run hangs after step 7: no step for ")
    folder = attempt_dir(tmp_path, 1)
    hang, _ = recorded_hang(folder) or pytest.fail("nothing was recorded")
    assert [suspect.rank for suspect in hang.suspects] == [0, 1]  # nobody writes here: both are silent
    cause = find_first_cause(folder, [])
    assert (cause.rank, cause.host, cause.step, cause.exit_code) == (0, "far", 7, 1)
    assert str(cause).startswith("rank 0 on far failed after step 7: no step for ")
    assert str(cause).endswith(f"\n  see {folder / 'rank-0' / 'log.txt'}")
    (folder / "rank-0/stacks.txt").write_text("Thread 0x1 (most recent call first):\n")
    assert find_first_cause(folder, []).log == folder / "rank-0/stacks.txt"


def test_a_hang_that_cannot_be_recorded_is_said_and_ends_the_attempt_all_the_same(tmp_path: Path) -> None:
    leave(tmp_path, 0, replace(TRAINS, patience_s=0.4))
    (attempt_dir(tmp_path, 1) / "findings.jsonl").mkdir()  # what writes there fails, as on a full disk
    said: list[str] = []
    watch = Watch(tmp_path, 1, 1)
    while not watch.check(said.append):
        time.sleep(0.05)
    assert len(said) == 1
    assert said[0].startswith("the run hangs after step 7: no step for ")
    assert "could not be written" in said[0]


def test_a_straggler_is_said_and_recorded(tmp_path: Path) -> None:
    said: list[str] = []
    watch = Watch(tmp_path, 1, 2)
    step = 0
    while not said:
        step += 1
        for rank, waiting in enumerate((0.9, 0.0)):
            beat = replace(TRAINS, step=step, step_time=float(step), waiting=waiting, time=float(step))
            leave(tmp_path, rank, replace(beat, patience_s=2.0))
        assert watch.check(said.append) is False
        time.sleep(0.05)
    assert said[0].startswith("rank 1 on far is slow")
    (line,) = (attempt_dir(tmp_path, 1) / "findings.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == said[0]


def test_an_error_that_was_there_before_the_hang_is_the_first_cause(tmp_path: Path) -> None:
    found = {"kind": "hang", "time": 5.0, "suspects": [{"rank": 0, "host": "h", "what": "waits"}]}
    (tmp_path / "findings.jsonl").write_text(json.dumps({**found, "waiting": [], "step": 3, "seconds": 9.0}))
    folder = tmp_path / "rank-1"
    folder.mkdir()
    error = {"rank": 1, "host": "h", "step": 2, "exit_code": 1, "type": "ValueError", "message": "no"}
    for when, named in ((4.0, 1), (6.0, 0)):
        (folder / "error.json").write_text(json.dumps({**error, "traceback": "", "time": when}))
        assert find_first_cause(tmp_path, []).rank == named


def test_workers_of_which_none_starts_are_waited_for_no_longer_than_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "nosuchhost-xyz")
    folder = attempt_dir(tmp_path, 1)
    folder.mkdir(parents=True)
    (folder / "launcher.log").write_text(
        "W1130 a warning\ntorch.distributed.DistNetworkError: getaddrinfo\nlast\n"
    )
    watch = Watch(tmp_path, 1, 2, start_s=20)
    imports = replace(STARTS, patience_s=None)
    assert watched(watch, 19) == []
    (no_start,) = watched(watch, 0, imports, start=20)
    text = str(no_start)
    assert text.startswith("no worker has started within 20 s: this host's name, nosuchhost-xyz, does not ")
    assert "torch.distributed.DistNetworkError: getaddrinfo; raise job.timeout_s" in text
    record(folder, no_start)
    assert find_first_cause(folder, []).error == text


def test_a_worker_that_has_read_its_recipe_is_watched_by_its_own_patience(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1, 2, start_s=20)
    assert watched(watch, 60, replace(STARTS, patience_s=100.0), replace(STARTS, patience_s=100.0)) == []


def test_an_attempt_that_names_no_worker_is_told_with_the_launchers_last_error(tmp_path: Path) -> None:
    assert find_first_cause(tmp_path, []).error == "it ended without naming a worker"
    (tmp_path / "launcher.log").write_text(
        "Traceback\nModuleNotFoundError: No module named 'torch'\n  note\n"
    )
    cause = find_first_cause(tmp_path, [])
    assert cause.error == "it ended without naming a worker; ModuleNotFoundError: No module named 'torch'"
