"""Every pair of values that may stand together is in a combination, by trying out all combinations there are."""

from itertools import combinations, product

from pairwise import covering

AXES = {
    "workers": ["4", "1", "2"],
    "tensor": ["1", "2", "4"],
    "sequence": ["false", "true"],
    "expert": ["1", "2", "4"],
    "engine": ["native", "zero"],
    "sharding": ["all", "groups"],
}


def may_stand(choice: dict[str, str]) -> bool:
    workers, tensor, expert = (int(choice[axis]) for axis in ("workers", "tensor", "expert"))
    return (
        workers % tensor == workers % expert == 0
        and (choice["sequence"] == "false" or tensor > 1)
        and (choice["sharding"] == "all" or choice["engine"] == "native")
    )


def test_every_pair_that_some_combination_has_is_covered_and_no_other():
    found = covering(AXES, may_stand)
    every = [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]
    possible = {pair for choice in every if may_stand(choice) for pair in combinations(choice.items(), 2)}
    covered = {pair for choice in found.chosen for pair in combinations(choice.items(), 2)}
    assert all(may_stand(choice) for choice in found.chosen)
    assert covered == possible
    assert possible.isdisjoint(found.apart)
    assert (("engine", "zero"), ("sharding", "groups")) in found.apart
    assert len(found.chosen) < 16
    assert found == covering(AXES, may_stand)
