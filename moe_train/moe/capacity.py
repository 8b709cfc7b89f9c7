"""Applies the capacity limit: which tokens of a group an expert accepts; `config/capacity.py` says how many.

A routing group is a whole number of sequences, never "the tokens of a rank": so the same tokens are dropped
on every layout. It counts places of these sequences (rows.py), whether a row has come for each or not.
N edges, E experts.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moe_train.moe.counts import counts_of
from moe_train.moe.routing import Routing
from moe_train.moe.rows import Rows


def within_capacity(
    routing: Routing, group_tokens: int, slots: int, rows: Rows | None = None
) -> Bool[Tensor, " N"]:
    """Returns which edges fit: in each group of `group_tokens` places an expert takes its first `slots` edges.

    All first choices come before any second choice, and among equal choices earlier tokens come first
    (GShard, 2006.16668, alg. 1; Switch, 2101.03961, sec. 2.2). Causal with one choice; with more, a second
    choice can lose its place to the first choice of a later token. With a priority, tokens of a higher one come
    before earlier tokens (V-MoE, 2106.05974, sec. 4): not causal.
    """
    segment = _segments(routing, group_tokens, rows)
    queue = segment * routing.num_choices + routing.choices
    if routing.priority is None:
        order = torch.argsort(queue, stable=True)
    else:
        order = torch.argsort(routing.priority[routing.token_ids], descending=True, stable=True)
        order = order[torch.argsort(queue[order], stable=True)]
    position = torch.empty_like(order)
    position[order] = _rank_in_run(segment[order])
    return position < slots


def first_with_room(
    routing: Routing, group_tokens: int, slots: int, rows: Rows | None = None
) -> Bool[Tensor, " N"]:
    """Returns the edge that each token uses: its earliest choice whose expert has one of its `slots` left, if any.

    Choice by choice, and earlier tokens first: a token refused in one round asks again in the next, behind all that
    were served (mesh-tensorflow's `_ntlb_gating`: Switch's "no token left behind").
    """
    segment = _segments(routing, group_tokens, rows)
    num_places = routing.num_tokens if rows is None else rows.values.numel()
    groups = -(-num_places // group_tokens)
    room = segment.new_full((groups * routing.num_experts,), slots)
    is_used = torch.zeros_like(segment, dtype=torch.bool)
    is_waiting = is_used.new_ones(routing.num_tokens)
    for choice in range(routing.num_choices):
        asking = ((routing.choices == choice) & is_waiting[routing.token_ids]).nonzero().squeeze(1)
        order = asking[torch.argsort(segment[asking], stable=True)]
        served = order[_rank_in_run(segment[order]) < room[segment[order]]]
        is_used[served] = True
        is_waiting[routing.token_ids[served]] = False
        room -= counts_of(segment[served], len(room))
    return is_used


def _segments(routing: Routing, group_tokens: int, rows: Rows | None) -> Int[Tensor, " N"]:
    """Numbers edges so that those from one routing group to one expert share a number; rows are full unless given."""
    places = routing.token_ids if rows is None else rows.places_of(routing.token_ids)
    return places // group_tokens * routing.num_experts + routing.expert_ids


def _rank_in_run(values: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Returns the place of each element in its run of equal values: [3, 3, 5, 5, 5] -> [0, 1, 0, 1, 2]."""
    index = torch.arange(values.numel(), device=values.device)
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[1:] = values[1:] != values[:-1]
    return index - torch.cummax(torch.where(starts, index, torch.zeros_like(index)), dim=0).values
