"""Router statistics, load balancing and draws on CUDA: tests of tests/kernels themselves, their operators moved there.

What those tests make and look at stays on the CPU; every operator call in between runs on the GPU.
"""

import pytest
import test_kernels_balance as balance_tests
import test_kernels_router as router_tests
import test_kernels_uniform as uniform_tests
import torch
from chosen_library import on_device, use_library
from test_kernels_balance import (  # noqa: F401  these run here again
    test_first_choices_come_before_second_ones,
    test_no_tokens_have_no_groups,
    test_priority_goes_before_position_but_not_before_first_choices,
    test_the_balance_loss_is_moe_trains_with_its_gradient,
    test_the_balance_loss_of_many_experts_is_the_references,
    test_the_balance_loss_of_nothing_is_zero,
    test_the_bias_moves_towards_the_mean_load,
    test_the_limit_is_moe_trains,
    test_the_limit_is_that_of_loops,
    test_the_sign_of_the_bias_update_is_exact,
    test_who_is_kept_by_priority_does_not_depend_on_position,
)
from test_kernels_router import (  # noqa: F401
    test_a_bias_moves_the_choice_but_not_the_weights,
    test_a_gradient_that_arrives_alone_is_enough,
    test_bfloat16_logits_are_converted_first,
    test_logits_may_be_a_transposed_view,
    test_masked_experts_are_never_chosen,
    test_nan_shows_in_the_sums_and_is_not_chosen,
    test_no_tokens_give_empty_statistics,
    test_scores_are_exact_to_the_last_digits,
    test_statistics_and_gradients_are_the_references,
    test_ties_go_to_the_lower_expert,
    test_two_tokens_by_hand,
)
from test_kernels_uniform import (  # noqa: F401
    test_nothing_is_drawn_where_nothing_is_asked_for,
    test_numbers_are_those_of_the_hash,
)

from moe_kernels.ops import balance, router, uniform

LIBRARY, DEVICE = "cuda", "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random tensors in every run."""
    torch.manual_seed(0)


@pytest.fixture
def library(monkeypatch) -> str:
    """The operators that the tests call, on the GPU."""
    for operators, tests, names in (
        (router, router_tests, ["router_statistics"]),
        (balance, balance_tests, ["balance_loss", "limit_capacity", "update_bias"]),
        (uniform, uniform_tests, ["uniform"]),
    ):
        use_library(LIBRARY, operators, monkeypatch)
        for name in names:
            monkeypatch.setattr(tests, name, on_device(getattr(operators, name), DEVICE))
    return LIBRARY


def test_every_run_gives_the_same_bits(library):
    logits = router_tests.some_logits(5000, 64).requires_grad_()
    runs = []
    for _ in range(3):
        result = router_tests.router_statistics(logits, 2)
        total = result.weights.square().sum() + result.importance.square().sum() + result.z
        verdict = balance_tests.limit_capacity(result.expert_ids, 64, 100, priorities=logits.detach()[:, 0])
        runs.append((*result, *verdict, *torch.autograd.grad(total, logits)))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
