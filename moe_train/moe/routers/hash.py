"""Implements hash layers (Roller et al., 2106.04426): a token's id is looked up in a fixed table of experts.

No parameters, no loss, weight 1; training and validation use the same table. It is made once from the run's seed
(each layer has its own), is the same on every rank, and is saved with the model as a buffer. Tables:
  random    each id to an expert drawn by itself, as in ParlAI's `hash_ladder`
  balanced  ids by falling frequency in the training text, each to the expert with the least so far (sec. 3.1)
  modulo    id modulo E   # Clark et al., 2202.01169
  bigram    by previous and current id: (previous * (V + 1) + current) mod buckets, each bucket to a drawn expert;
            the first token of a sequence has V for its previous id
  clustered like ids to one expert: each expert has a cluster
  dispersed like ids to different ones: each cluster is dealt out evenly, its commonest ids first, to the experts with
            the least so far
The paper clusters the token embeddings of a trained Transformer by k-means, E clusters, and deals out the same ones
(from memory). There is no such model before the first step: here the vectors are made of the tokens' neighbours in
the training text (token_vectors.py). Ids that stand beside no common one there, as those that never occur, are dealt
out evenly by both.
With a byte vocabulary the commonest id alone can exceed 1/E of the text: then nothing but `bigram` is balanced.
T tokens, D model width, E experts, V vocabulary.
"""

import heapq

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_train.config.kinds.router.hash import HashRouterConfig
from moe_train.moe.k_means import k_means
from moe_train.moe.routers.edges import table_routing
from moe_train.moe.routing import RouteContext, Routing, TableRouter, Vocabulary


class HashRouter(TableRouter, nn.Module):
    """Routes each token to one expert, by its id."""

    vocabulary_size: int

    def __init__(self, config: HashRouterConfig, *, d_model: int, num_experts: int, group: int, site: str):
        super().__init__()
        self.config, self.num_experts = config, num_experts
        self.register_buffer("table", None)

    def make_table(self, vocabulary: Vocabulary, generator: torch.Generator) -> Int[Tensor, " N"]:
        """Returns the expert of every id, or of every bucket."""
        kind, size = self.config.table, vocabulary.size
        self.vocabulary_size = size
        if kind == "balanced":
            return balanced_table(vocabulary.count(), self.num_experts, generator)
        if kind == "modulo":
            return torch.arange(size) % self.num_experts
        if kind in ("clustered", "dispersed"):
            cluster_ids, is_known = _clusters(vocabulary.vectors(), self.num_experts, generator)
            dealt = dispersed_table(cluster_ids, vocabulary.count(), self.num_experts)
            return dealt if kind == "dispersed" else torch.where(is_known, cluster_ids, dealt)
        entries = self.config.buckets if kind == "bigram" else size
        return torch.randint(self.num_experts, (entries,), generator=generator)

    def forward(self, x: Float[Tensor, "T D"], context: RouteContext) -> Routing:
        """Looks up every token by its id, without reading the rows."""
        assert self.table is not None, "the table is made before the first step: see distribute/apply.py"
        expert_ids = self.table[context.rows.take(self._entries(context.rows.values))].unsqueeze(1)
        weights = torch.ones(expert_ids.shape, device=expert_ids.device)
        return table_routing(expert_ids, weights, self.num_experts)

    def _entries(self, values: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
        if self.config.table != "bigram":
            return values
        begin = values.new_full((len(values), 1), self.vocabulary_size)
        previous = torch.cat((begin, values[:, :-1]), dim=1)
        return (previous * (self.vocabulary_size + 1) + values) % self.config.buckets


def balanced_table(
    counts: Int[Tensor, " V"], num_experts: int, generator: torch.Generator
) -> Int[Tensor, " V"]:
    """Assigns ids by falling count, each to the expert that has the least of the text so far.

    Ids of equal count come in a drawn order, and experts have drawn numbers. An id that never occurs counts as one
    that occurs once: so they too are spread.
    """
    drawn = torch.randperm(len(counts), generator=generator)
    order = drawn[counts[drawn].argsort(descending=True, stable=True)]
    table = [0] * len(counts)
    least = [(0, expert) for expert in range(num_experts)]  # a heap, as all are equal
    for token, count in zip(order.tolist(), counts[order].tolist(), strict=True):
        load, expert = least[0]
        table[token] = expert
        heapq.heapreplace(least, (load + max(count, 1), expert))
    return torch.randperm(num_experts, generator=generator)[table]


def dispersed_table(
    cluster_ids: Int[Tensor, " V"], counts: Int[Tensor, " V"], num_experts: int
) -> Int[Tensor, " V"]:
    """Returns each cluster's ids over all experts: their numbers of a cluster differ by one at most.

    E ids at a time by falling count, the commonest to the expert with the least of the text so far.
    """
    order = counts.argsort(descending=True, stable=True)
    table, load = torch.zeros_like(cluster_ids), torch.zeros(num_experts, dtype=torch.int64)
    for cluster in cluster_ids.unique().tolist():
        for ids in order[cluster_ids[order] == cluster].split(num_experts):
            experts = load.argsort(stable=True)[: len(ids)]
            table[ids] = experts
            load[experts] += counts[ids].clamp(min=1)
    return table


def _clusters(
    vectors: Float[Tensor, "V N"], num_experts: int, generator: torch.Generator
) -> tuple[Int[Tensor, " V"], Bool[Tensor, " V"]]:
    """Clusters the ids that have a vector into E clusters; all others make one more, number E."""
    is_known = vectors.any(1)
    cluster_ids = torch.full((len(vectors),), num_experts)
    if is_known.any():
        cluster_ids[is_known] = k_means(vectors[is_known], num_experts, generator)
    return cluster_ids, is_known
