"""What a record of torch's flight recorder says of the collective that a worker waits in."""

import json

from moe_train.worker.collectives import pending

AXES = {"0": "world", "7": "tensor"}


def entry(operation: str, group: str, retired: bool) -> dict[str, object]:
    return {"profiling_name": operation, "process_group": [group, "mesh_x"], "retired": retired}


def recorded(*entries: dict[str, object]) -> str:
    return json.dumps({"version": "2.10", "entries": entries})


def test_the_oldest_collective_that_has_not_ended_is_named_with_its_axis() -> None:
    ended = entry("gloo:all_reduce", "0", True)
    first, second = entry("nccl:_all_gather_base", "7", False), entry("nccl:all_to_all", "0", False)
    assert pending(recorded(ended, first, second), AXES) == "all_gather_base over tensor"
    assert pending(recorded(ended, second), AXES) == "all_to_all over world"


def test_a_group_that_is_no_axis_keeps_its_own_description() -> None:
    assert pending(recorded(entry("gloo:barrier", "9", False)), AXES) == "barrier over mesh_x"


def test_none_is_named_if_all_have_ended_or_torch_is_not_loaded() -> None:
    assert pending(recorded(entry("gloo:all_reduce", "0", True)), AXES) is None
    assert pending("", AXES) is None
