"""Rows that are a part of every sequence: what they draw is their part of what the whole sequences draw."""

import torch
from tiny_model import context, normal, with_padding

from moe_train.moe.rows import Rows
from moe_train.parallel.axis import Axis


def test_the_parts_of_a_draw_are_together_the_draw_of_whole_sequences():
    whole = context(3, 8, training=True)
    parts = [
        type(whole)(whole.forward_pass, whole.rows.part(Axis(4, index))).uniform("site", 5).view(3, 2, 5)
        for index in range(4)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole.uniform("site", 5).view(3, 8, 5))


def test_a_part_selects_its_positions_and_knows_which_are_real():
    is_real = torch.arange(8).expand(3, 8) < torch.tensor([[8], [5], [2]])
    rows = with_padding(context(3, 8), is_real).rows
    part, states = rows.part(Axis(2, 1)), normal(3, 8, 5)
    assert (part.first, part.length, part.of_whole_sequences) == (4, 4, rows)
    assert torch.equal(part.values, rows.values[:, 4:])
    assert part.num_real == 5
    assert torch.equal(part.part_of(states), states[:, 4:])
    assert torch.equal(part.lay_out(part.take(part.part_of(states))), states[:, 4:])


def test_one_part_is_the_whole():
    rows = Rows(torch.arange(2), torch.zeros(2, 6, dtype=torch.int64))
    assert rows.part(Axis()) is rows
    assert rows.of_whole_sequences is rows
