"""How an attempt on Ray is judged by what its workers left, and by what is known of those that left nothing."""

import json
import resource
from pathlib import Path

import pytest

from moe_cluster.contract import DONE, ENDING_FILE, FAILED, HEARTBEAT_FILE, PREEMPTED
from moe_cluster.ray.nodes import RayNode, room
from moe_cluster.ray.outcome import outcome_of_ray
from moe_cluster.ray.trainer import chosen_nodes
from moe_cluster.ray.workers import passed_on, record_ending
from moe_cluster.share import Share


class RayError(Exception):
    """As Ray Train raises it."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors:\nmore")
        self.worker_failures = failures


def worker(folder: Path, rank: int, exit_code: int | None, time: float = 0.0) -> None:
    """A rank on host HRANK that began, and ended with `exit_code` unless that is None."""
    rank_dir = folder / f"rank-{rank}"
    rank_dir.mkdir()
    (rank_dir / HEARTBEAT_FILE).write_text(json.dumps({"host": f"h{rank}", "step": 7}))
    if exit_code is not None:
        ending = {"exit_code": exit_code, "host": f"h{rank}", "time": time}
        (rank_dir / ENDING_FILE).write_text(json.dumps(ending))


@pytest.mark.parametrize("code", [DONE, PREEMPTED])
def test_an_attempt_ends_as_its_workers_do(tmp_path: Path, code: int) -> None:
    worker(tmp_path, 0, code)
    worker(tmp_path, 1, code)
    assert outcome_of_ray(tmp_path, 2, None, {}, {}).exit_code == code


def test_a_failure_of_ray_after_all_workers_are_done_is_none(tmp_path: Path) -> None:
    worker(tmp_path, 0, DONE)
    worker(tmp_path, 1, DONE)
    assert outcome_of_ray(tmp_path, 2, RayError({1: OSError("node died")}), {}, {}).exit_code == DONE


def test_the_worker_that_was_killed_first_is_the_cause(tmp_path: Path) -> None:
    worker(tmp_path, 0, -6, time=2.0)
    worker(tmp_path, 1, -9, time=1.0)
    cause = outcome_of_ray(tmp_path, 2, RayError({}), {}, {}).first_cause
    assert cause is not None
    assert (cause.rank, cause.host, cause.step) == (1, "h1", 7)
    assert "killed by SIGKILL" in cause.error


def test_a_rank_whose_node_is_gone_is_the_cause_and_the_node_is_named(tmp_path: Path) -> None:
    worker(tmp_path, 0, None)
    worker(tmp_path, 1, None)
    cause = outcome_of_ray(tmp_path, 2, RayError({}), {}, {"h1": "its node h1 does not answer"}).first_cause
    assert cause is not None
    assert (cause.rank, cause.error) == (1, "its node h1 does not answer")


def test_a_node_for_whose_loss_an_attempt_was_ended_goes_before_what_the_others_say(tmp_path: Path) -> None:
    worker(tmp_path, 0, -9, time=1.0)
    worker(tmp_path, 1, None)
    cause = outcome_of_ray(tmp_path, 2, RayError({}), {"h1": "its node h1 does not answer"}, {}).first_cause
    assert cause is not None
    assert (cause.rank, cause.host, cause.error) == (1, "h1", "its node h1 does not answer")


def test_rays_own_words_are_told_of_an_actor_that_died(tmp_path: Path) -> None:
    worker(tmp_path, 0, None)
    cause = outcome_of_ray(tmp_path, 1, RayError({0: OSError("the actor died\nmore")}), {}, {}).first_cause
    assert cause is not None
    assert cause.error == "OSError: the actor died"


def test_rays_own_words_are_told_where_no_worker_began(tmp_path: Path) -> None:
    outcome = outcome_of_ray(tmp_path, 2, RuntimeError("no such folder on the nodes\nmore"), {}, {})
    assert outcome.exit_code == FAILED
    assert outcome.first_cause is not None
    assert outcome.first_cause.error == "RuntimeError: no such folder on the nodes"


def node(name: str, cpus: float, gpus: float = 0.0) -> RayNode:
    return RayNode(name, "10.0.0.1", 1, name, {"CPU": cpus, "GPU": gpus})


@pytest.mark.parametrize(
    ("share", "each"),
    [
        (Share({"CPU": 1}, per_node=1), [1, 1, 0]),
        (Share({"CPU": 2}, per_node=8), [4, 1, 0]),
        (Share({"CPU": 1, "GPU": 1}, per_node=8), [2, 0, 0]),
        (Share({"CPU": 0.1}), [80, 30, 5]),
    ],
)
def test_a_node_has_room_for_what_fits_and_is_allowed(share: Share, each: list[int]) -> None:
    nodes = [node("a", 8, 2), node("b", 3), node("c", 0.5)]
    assert [one.room(share) for one in nodes] == each
    assert room(nodes, share) == sum(each)


def test_the_node_with_the_most_room_is_filled_first() -> None:
    nodes = [node("a", 1), node("b", 4)]
    assert [one.id for one in chosen_nodes(nodes, 5, Share({"CPU": 1}))] == ["b", "b", "b", "b", "a"]


def test_an_ending_that_finds_no_room_is_not_half_there(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        untold = record_ending(tmp_path, FAILED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert untold == f", and {ENDING_FILE} could not be written (File too large)"
    assert not (tmp_path / ENDING_FILE).exists()
    assert record_ending(tmp_path, FAILED) == ""
    assert json.loads((tmp_path / ENDING_FILE).read_text())["exit_code"] == FAILED


def test_a_trainer_inherits_neither_rays_token_nor_slurms_name_of_the_node() -> None:
    actor = {"RAY_AUTH_TOKEN": "secret", "SLURMD_NODENAME": "gpu-17", "SLURM_JOB_ID": "7", "PATH": "/bin"}
    inherited = {name: value for name, value in passed_on(actor).items() if name != "PYTHONPATH"}
    assert inherited == {"SLURM_JOB_ID": "7", "PATH": "/bin"}


def test_a_trainer_does_not_inherit_the_place_that_another_launcher_gave_ray() -> None:
    pod = {"RANK": "3", "TORCHELASTIC_USE_AGENT_STORE": "True", "PET_NNODES": "2", "PMI_RANK": "3"}
    assert not {*pod} & {*passed_on(pod)}
