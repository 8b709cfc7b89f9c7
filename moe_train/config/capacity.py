"""Computes how many tokens of a routing group an expert accepts: plain arithmetic, for the layer and for `show`.

`moe/capacity.py` decides which tokens these are.
"""

import math


def capacity(convention: str, factor: float, tokens: int, experts: int, choices: int, smallest: int) -> int:
    """Returns the slots of an expert in a group of `tokens` tokens.

    Libraries round differently, which changes results, so the convention has a name:
    mesh       floor(factor * S / E)                     mesh-tensorflow and flaxformer: choices not counted
    deepspeed  ceil(factor * choices * S / E)
    vmoe       the same, rounded up to a multiple of 4
    Then at most S and at least `smallest`, in this order (so `smallest` wins where S is smaller).
    """
    if convention == "mesh":
        slots = math.floor(factor * tokens / experts)
    else:
        slots = math.ceil(factor * choices * tokens / experts)
    if convention == "vmoe":
        slots = -(-slots // 4) * 4
    return max(min(slots, tokens), smallest)


def effective_factor(convention: str, slots: int, tokens: int, experts: int, choices: int) -> float:
    """Returns the capacity factor that `slots` slots correspond to, without rounding or bounds."""
    return slots * experts / (tokens if convention == "mesh" else choices * tokens)


def chance_cv(tokens: int, experts: int, choices: int) -> float:
    """Returns the CV of the experts' loads in a group whose tokens choose `choices` different experts at random.

    A load is then binomial, of `tokens` draws with chance choices / experts.
    """
    return math.sqrt((experts - choices) / (tokens * choices))


def dropped_share(slots: int, mean: float, cv: float) -> float:
    """Returns the share of assignments beyond `slots` for loads of this mean and CV: E[max(load - slots, 0)] / mean.

    Loads are assumed to be normally distributed.
    """
    if cv == 0:
        return max(1 - slots / mean, 0.0)
    z = (slots / mean - 1) / cv
    above, density = math.erfc(z / math.sqrt(2)) / 2, math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return cv * (density - z * above)
