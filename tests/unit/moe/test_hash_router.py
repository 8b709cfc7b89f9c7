"""Hash layers: the same id, the same expert; tables that are even, made once and saved."""

from dataclasses import replace

import pytest
import torch
from gloo_workers import run_workers
from tiny_model import context, normal, one_worker, tiny_recipe, vocabulary

from moe_train.config.check import problems
from moe_train.config.kinds.router.hash import HashRouterConfig
from moe_train.config.notes import notes
from moe_train.config.plan import ParallelPlan
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.distribute.apply import distribute
from moe_train.moe.routers.hash import HashRouter, balanced_table, dispersed_table
from moe_train.moe.routing import Pass, RouteContext, Vocabulary
from moe_train.moe.rows import Rows
from moe_train.moe.token_vectors import token_vectors
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.random import RandomStream, generator_for

V, E = 1000, 8


def router(config: HashRouterConfig, counts: torch.Tensor | None = None, seed: int = 0) -> HashRouter:
    counts = torch.ones(V, dtype=torch.long) if counts is None else counts
    vocabulary = Vocabulary(V, lambda: counts, lambda: normal(V, 6).double())
    made = HashRouter(config, d_model=4, num_experts=E, group=1, site="layers.0.router")
    made.table = made.make_table(vocabulary, generator_for(seed, "table"))
    return made


def table_of(kind: str, neighbours: torch.Tensor, num_experts: int) -> torch.Tensor:
    """The table for a text in which tokens have these neighbours; column n is for the context of token n."""
    counts = neighbours.sum(1)
    vocabulary = Vocabulary(len(counts), lambda: counts, lambda: token_vectors(neighbours))
    made = HashRouter(
        HashRouterConfig(table=kind), d_model=4, num_experts=num_experts, group=1, site="router"
    )
    return made.make_table(vocabulary, generator_for(0, "table"))


def two_languages(size: int) -> torch.Tensor:
    """Neighbours in a text of two languages: even tokens stand beside even ones only, odd ones beside odd ones."""
    generator = torch.Generator().manual_seed(0)
    even = torch.arange(size) % 2
    return torch.randint(20, 40, (size, size), generator=generator) * (even == even.unsqueeze(1))


def experts_of(made: HashRouter, values: torch.Tensor) -> torch.Tensor:
    seen = RouteContext(Pass(True, 0.0, RandomStream(0, 0)), Rows(torch.arange(len(values)), values))
    routing = made(torch.zeros(values.numel(), 4), seen)
    assert torch.equal(routing.weights, torch.ones(values.numel()))
    return routing.expert_ids.view_as(values)


@pytest.mark.parametrize("table", ["balanced", "random", "modulo", "clustered", "dispersed"])
def test_a_token_has_the_same_expert_in_every_context(table):
    made, values = router(HashRouterConfig(table=table)), torch.tensor([[7, 8, 7, 9], [9, 7, 500, 8]])
    chosen = experts_of(made, values)
    assert torch.equal(chosen, made.table[values])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(experts_of(made, values[:, order]), chosen[:, order])


def test_bigrams_go_by_the_previous_token_too():
    made = router(HashRouterConfig(table="bigram"))
    first, second = experts_of(made, torch.tensor([[5, 6, 7, 6], [5, 6, 8, 6]]))
    assert torch.equal(first[:2], second[:2])
    pairs = torch.stack((torch.arange(V), torch.full((V,), 6)), dim=1)
    after = experts_of(made, pairs)[:, 1]
    assert torch.bincount(after, minlength=E).min() > 0.6 * V / E
    assert first[3] == after[7]
    assert second[3] == after[8]


def test_the_first_token_of_a_sequence_does_not_see_the_sequence_before_it():
    made = router(HashRouterConfig(table="bigram"))
    alone = experts_of(made, torch.tensor([[5, 6]]))
    assert torch.equal(experts_of(made, torch.tensor([[9, 9], [5, 6]]))[1:], alone)


def cv_of_zipf(table: str) -> float:
    counts = (1e6 / torch.arange(1, V + 1)).long()
    made = router(HashRouterConfig(table=table), counts)
    load = torch.bincount(made.table, weights=counts.double(), minlength=E)
    return float(load.std(correction=0) / load.mean())


def test_balanced_tables_even_out_what_random_ones_do_not():
    # The commonest of 1,000 tokens under Zipf's law has 13.4% of the text, an eighth is 12.5%.
    assert cv_of_zipf("balanced") < 0.03
    assert cv_of_zipf("random") > 0.15


def test_balancing_is_greedy():
    table = balanced_table(torch.tensor([1, 3, 5, 4, 3]), 2, generator_for(0, "table"))
    # 5 | 4, then 3 to the 4, 3 to the 5, and 1 to the 7: 8 each.
    assert table[2] != table[3]
    assert table[1] != table[4]
    assert table[0] == table[3]


def test_tokens_that_never_occur_are_spread():
    table = balanced_table(torch.zeros(80, dtype=torch.long), E, generator_for(0, "table"))
    assert torch.bincount(table).tolist() == [10] * E


def test_tokens_that_stand_in_like_places_are_clustered():
    table = table_of("clustered", two_languages(40), 2)
    assert table[0] != table[1]
    assert table.tolist() == [int(table[0]), int(table[1])] * 20


def test_dispersed_tables_give_each_language_to_all_experts_evenly():
    neighbours = two_languages(42)
    table = table_of("dispersed", neighbours, 2)
    assert sorted(torch.bincount(table[0::2]).tolist()) == [10, 11]
    assert sorted(torch.bincount(table[1::2]).tolist()) == [10, 11]
    load = torch.bincount(table, weights=neighbours.sum(1).double())
    assert float(load.std(correction=0) / load.mean()) < 0.05


def test_a_cluster_is_dealt_out_by_falling_count_to_who_has_least():
    clusters, counts = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([5, 9, 1, 2, 0, 3])
    # 9 to expert 0, 5 to 1, 1 to 1 that has less; then 3 to 1 (6 against 9), 2 to 0, 0 to 1 (9 against 11).
    assert dispersed_table(clusters, counts, 2).tolist() == [1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("kind", ["clustered", "dispersed"])
def test_tokens_that_the_text_does_not_have_are_dealt_out_too(kind):
    neighbours = torch.zeros(60, 60, dtype=torch.long)
    neighbours[:40, :40] = two_languages(40)
    table = table_of(kind, neighbours, 2)
    assert torch.bincount(table[40:]).tolist() == [10, 10]
    assert torch.bincount(table_of(kind, torch.zeros(60, 60, dtype=torch.long), 2)).tolist() == [30, 30]


@pytest.mark.parametrize("table", ["balanced", "random", "bigram", "clustered", "dispersed"])
def test_a_table_is_a_function_of_the_seed(table):
    config = HashRouterConfig(table=table)
    assert torch.equal(router(config).table, router(config).table)
    assert not torch.equal(router(config).table, router(config, seed=1).table)


@pytest.mark.parametrize("table", ["balanced", "clustered", "dispersed"])
def test_every_layer_has_its_table_and_saves_it_whole(table):
    recipe = tiny_recipe("moe.router.kind=hash", f"moe.router.table={table}")
    engine = build("engine", recipe.engine, recipe=recipe, mesh=one_worker(), vocabulary=vocabulary(recipe))
    names = [f"model.layers.{layer}.feedforward.router.table" for layer in range(2)]
    (first,), (second,) = (engine.state()[name] for name in names)
    assert first.global_shape == tuple(first.data.shape) == (300,)
    assert (first.offsets, first.is_expert) == ((0,), False)
    assert not torch.equal(first.data, second.data)
    first.data.zero_()  # as loading would
    assert torch.equal(engine.model.layers[0].feedforward.router.table, torch.zeros(300, dtype=torch.long))


def test_routing_reads_the_tokens_not_the_rows():
    made, seen = router(HashRouterConfig()), context(2, 5)
    one, other = made(torch.zeros(10, 4), seen), made(torch.ones(10, 4), seen)
    assert torch.equal(one.expert_ids, other.expert_ids)


def test_too_few_buckets_are_refused():
    recipe = Recipe()
    recipe.moe.router = HashRouterConfig(table="bigram", buckets=100)
    assert [problem.key for problem in recipe.moe.router.check(recipe)] == ["moe.router.buckets"]
    recipe.moe.router = HashRouterConfig(table="random", buckets=100)
    assert not list(recipe.moe.router.check(recipe))


def table_from_own_vectors(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """What a worker would make of vectors that no other has, as if its machine rounded otherwise; and what it has."""
    recipe = tiny_recipe("moe.router.kind=hash", "moe.router.table=clustered")
    known = vocabulary(recipe)
    own = replace(known, vectors=lambda: normal(known.size, 8, seed=world.rank).double())
    mesh = Mesh.build(ParallelPlan(data=world.size), world)
    router = (
        distribute(spec_of(recipe), mesh, seed=recipe.seed, vocabulary=own).model.layers[0].feedforward.router
    )
    return router.make_table(own, generator_for(0, "table")), router.table


def test_all_workers_have_the_table_of_the_first():
    (first_own, first), (second_own, second) = run_workers(2, table_from_own_vectors)
    assert not torch.equal(first_own, second_own)
    assert torch.equal(first, second)


@pytest.mark.parametrize("table", ["clustered", "dispersed"])
def test_vocabularies_that_cannot_be_clustered_are_refused(table):
    recipe = tiny_recipe("moe.router.kind=hash", f"moe.router.table={table}")
    assert not list(recipe.moe.router.check(recipe))
    recipe.data.tokenizer.vocab_size = 2**17 + 1
    (problem,) = recipe.moe.router.check(recipe)
    assert "counts 131073 tokens beside 1024 others, but more than 131072 take too much memory" in str(
        problem
    )
    recipe.data.tokenizer.vocab_size, recipe.moe.num_experts = 300, 512
    (problem,) = recipe.moe.router.check(recipe)
    assert "needs at least as many tokens in the vocabulary as moe.num_experts=512, not 300" in str(problem)


@pytest.mark.parametrize("table", ["balanced", "random", "modulo", "bigram", "clustered", "dispersed"])
@pytest.mark.parametrize("share", [0.8, 0.0])
def test_a_note_says_that_masks_are_one_token_and_go_to_one_expert(table, share):
    masked = ("model.architecture=encoder", "objective.kind=masked", f"objective.masked_share={share}")
    dropless = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
    recipe = tiny_recipe("moe.router.kind=hash", f"moe.router.table={table}", *masked, *dropless)
    assert problems(recipe) == []
    said = ["80% of the tokens to predict" in note for note in notes(recipe)]
    assert said == ([True] if share and table != "bigram" else [])


def test_a_language_model_with_a_table_has_no_note_on_masks():
    assert not any("mask" in note for note in notes(tiny_recipe("moe.router.kind=hash")))
