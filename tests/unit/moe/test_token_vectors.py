"""Vectors of tokens: alike where the neighbours are."""

import pytest
import torch

from moe_train.moe.token_vectors import VECTOR_SIZE, token_vectors


def test_tokens_with_the_same_neighbours_have_the_same_vector_however_common_they_are():
    vectors = token_vectors(torch.tensor([[8, 4, 0], [80, 40, 0], [1, 1, 40], [0, 0, 0]]))
    torch.testing.assert_close(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.5
    assert not vectors[3].any(), "it was never seen"
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1, 1, 0])


def test_few_contexts_keep_all_angles_between_rows_of_positive_information():
    counts = torch.tensor([[4, 0, 2], [1, 3, 0], [0, 2, 5]])
    expected = counts.double()  # cell by cell, as the formula stands
    for token in range(3):
        for context in range(3):
            fair = counts[token].sum() * counts[:, context].sum() / counts.sum()
            expected[token, context] = max(0.0, float(torch.log(counts[token, context] / fair)))
    vectors, rows = token_vectors(counts), torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(vectors @ vectors.t(), rows @ rows.t())


def test_many_contexts_are_reduced():
    counts = torch.randint(0, 9, (300, 200), generator=torch.Generator().manual_seed(0))
    assert token_vectors(counts).shape == (300, VECTOR_SIZE)
