"""Numbers every token of a step independently of where it is, in a form that can be dispatched.

Dispatchers move rows of floating-point numbers, of which fp32 holds integers below 2^24 exactly.
T tokens, R rows.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_train.moe.rows import Rows

DIGIT_BITS = 20
NUM_DIGITS = 4
"""Of 20 bits: more than an integer has; and 16 bytes a row, which every dispatcher can move."""


def token_numbers(rows: Rows) -> Int[Tensor, " T"]:
    """Returns sequence number * sequence length + position."""
    length = rows.of_whole_sequences.length
    positions = torch.arange(length, device=rows.values.device)
    return rows.take(rows.part_of(rows.sequence_ids.unsqueeze(1) * length + positions))


def packed(numbers: Int[Tensor, " T"]) -> Float[Tensor, "T 4"]:
    """Returns numbers of at least 0 as digits in fp32, lowest first."""
    shifts = torch.arange(NUM_DIGITS, device=numbers.device) * DIGIT_BITS
    return ((numbers.unsqueeze(1) >> shifts) & ((1 << DIGIT_BITS) - 1)).float()


def unpack(digits: Float[Tensor, "R 4"]) -> Int[Tensor, " R"]:
    """Converts dispatched rows back into numbers."""
    shifts = torch.arange(NUM_DIGITS, device=digits.device) * DIGIT_BITS
    return (digits.long() << shifts).sum(1)
