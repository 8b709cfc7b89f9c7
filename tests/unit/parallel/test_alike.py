"""Workers that differ in recipe or versions: every rank names what differs, and where."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch.distributed as dist
from tiny_model import tiny_recipe

from moe_cluster.errors import ClusterError
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError
from moe_train.parallel import alike
from moe_train.parallel.alike import require_alike
from moe_train.parallel.world import Meeting

HOST = socket.gethostname()


def compare(*recipes: Recipe) -> list[str | None]:
    """What each rank says, in a thread of its own."""
    store = dist.HashStore()

    def rank(number: int) -> str | None:
        try:
            require_alike(recipes[number], Meeting(store, number, len(recipes), number, True, False))
        except UsageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(recipes)) as pool:
        return list(pool.map(rank, range(len(recipes))))


def test_workers_that_are_alike_train() -> None:
    assert compare(tiny_recipe(), tiny_recipe(), tiny_recipe()) == [None] * 3
    require_alike(tiny_recipe(), Meeting(None, 0, 1, 0, True, False))


def test_every_rank_names_the_keys_that_differ_with_both_values_and_the_rank() -> None:
    other = tiny_recipe("optim.lr=0.5", "optim.schedule.kind=cosine")
    messages = compare(tiny_recipe(), other, tiny_recipe())
    assert len(set(messages)) == 1
    first, *of_schedule = str(messages[0]).splitlines()
    way_out = f"on rank 1 on {HOST}; start all workers with the same recipe"
    assert first == f"optim.lr=3.0: must be the same on all workers, but is 0.5 {way_out}"
    assert (
        f"optim.schedule.kind=constant: must be the same on all workers, but is cosine {way_out}"
        in of_schedule
    )
    # Only a cosine has this key.
    assert any(line.startswith("optim.schedule.final_fraction=absent: ") for line in of_schedule)


def test_a_library_that_differs_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = iter([{"torch": "2.13.0"}, {"torch": "2.12.0"}, {"torch": "2.12.0"}])
    monkeypatch.setattr(alike, "versions", lambda packages: next(newer))
    (message,) = set(compare(tiny_recipe(), tiny_recipe(), tiny_recipe()))
    assert str(message).startswith("torch=2.12.0: must be the same on all workers, but is 2.13.0 on rank ")
    assert str(message).endswith("install the same version on all nodes, e.g. in a shared folder")


def test_the_packages_of_the_engine_are_compared() -> None:
    assert set(alike.versions(tiny_recipe("engine.kind=deepspeed").engine.packages)) == {
        *("python", "torch", "moe-train", "deepspeed", "megatron-core", "code")
    }


def test_a_rank_that_is_missing_is_named() -> None:
    recipe = tiny_recipe()
    recipe = replace(recipe, job=replace(recipe.job, timeout_s=0.2))
    with pytest.raises(ClusterError, match=r"rank 1 did not reach the preflight within 0 s, 1 of 2 did"):
        require_alike(recipe, Meeting(dist.HashStore(), 0, 2, 0, True, False))
