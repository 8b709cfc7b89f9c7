"""Solves balanced assignment by shortest augmenting paths, one token at a time, over the tokens of every expert.

G groups, S tokens of a group, E experts, M tokens of one expert. csrc/cpu/assignment.cpp has the idea; here the
cheapest move between two experts is searched for anew each time.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def balanced_assignment(scores: Tensor) -> Tensor:
    """Returns each token's expert, [G, S] int32, for scores [G, S, E]: moe_assign_balanced in csrc/interface.h."""
    groups = [_of_group(group) for group in scores.double().numpy()]
    return torch.from_numpy(np.array(groups, dtype=np.int32).reshape(scores.shape[:2]))


def _of_group(scores: NDArray[np.float64]) -> NDArray[np.int32]:
    tokens, experts = scores.shape
    finite = np.isfinite(scores)
    scores = np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)
    expert_of, prices = np.full(tokens, -1, np.int32), np.zeros(experts)
    places = -(-tokens // experts)
    for token in range(tokens):
        lengths, movers, is_done = prices - scores[token], np.full(experts, token), np.zeros(experts, bool)
        while True:
            nearest = int(np.where(is_done, np.inf, lengths).argmin())
            members = np.flatnonzero(expert_of == nearest)
            if len(members) < places:
                break
            is_done[nearest] = True
            moves = scores[members, nearest, None] - prices[nearest] - (scores[members] - prices)  # [M, E]
            via = lengths[nearest] + moves.min(0)
            is_shorter = ~is_done & (via < lengths)
            lengths[is_shorter] = via[is_shorter]
            movers[is_shorter] = members[moves.argmin(0)][is_shorter]
        prices[is_done] += lengths[nearest] - lengths[is_done]
        while expert_of[token] < 0:  # back along the way, the last token first
            mover = movers[nearest]
            expert_of[mover], nearest = nearest, expert_of[mover]
    return expert_of
