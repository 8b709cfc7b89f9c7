"""k-means: what is far apart is told apart, every time alike."""

import torch
from tiny_model import normal

from moe_train.moe.k_means import k_means
from moe_train.random import generator_for


def clusters_of(points: torch.Tensor, clusters: int, seed: int = 0) -> torch.Tensor:
    return k_means(points.double(), clusters, generator_for(seed, "clusters"))


def test_clouds_that_are_far_apart_are_the_clusters():
    cloud = torch.arange(60) % 3
    points = normal(60, 5) * 0.1 + 10 * torch.eye(5)[cloud]
    for seed in range(5):
        found = clusters_of(points, 3, seed)
        assert [len(found[cloud == each].unique()) for each in range(3)] == [1, 1, 1]
        assert len(found.unique()) == 3


def test_it_ends_where_every_point_is_nearest_to_the_mean_of_its_own_cluster():
    points = normal(50, 2).double()
    found = clusters_of(points, 4)
    means = torch.stack([points[found == each].mean(0) for each in range(4)])
    assert torch.equal(torch.cdist(points, means).argmin(1), found)


def test_it_is_a_function_of_points_and_seed():
    points = normal(200, 8)
    assert torch.equal(clusters_of(points, 20), clusters_of(points, 20))
    assert not torch.equal(clusters_of(points, 20), clusters_of(points, 20, seed=1))


def test_no_cluster_is_empty_even_where_points_are_the_same():
    two_places = torch.tensor([[0.0], [1.0]]).repeat_interleave(10, dim=0)
    assert clusters_of(two_places, 6).bincount(minlength=6).min() >= 1


def test_fewer_points_than_clusters_are_each_alone():
    assert len(clusters_of(normal(3, 2), 8).unique()) == 3


def test_points_by_the_piece_are_as_all_at_once(monkeypatch):
    points = normal(100, 3)
    whole = clusters_of(points, 7)
    monkeypatch.setattr("moe_train.moe.k_means.ROWS_AT_A_TIME", 9)
    assert torch.equal(clusters_of(points, 7), whole)
