"""Products of all experts at once against one an expert, their twin; on the CPU torch calls one after another."""

import pytest
import torch
from torch import Tensor

from moe_train.moe import experts as module
from moe_train.moe.experts import Experts
from moe_train.moe.grouped import has_grouped_products, run_ends

D_MODEL, D_FF = 8, 16
COUNTS = [3, 0, 1, 9, 0]


def passes(
    activation: str, dtype: torch.dtype, is_kept: bool, dropout: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of two forward and backward passes, which add up."""
    torch.manual_seed(0)
    experts = Experts(len(COUNTS), D_MODEL, D_FF, activation).to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    experts.gradient_scale = 0.25
    if is_kept:
        for tensor in experts.keep_gradients().tensors:
            tensor.fill_(float("nan"))  # what the first backward pass must overwrite
    outputs, gradients = [], []
    for _ in range(2):
        rows = torch.randn(sum(COUNTS), D_MODEL, dtype=torch.bfloat16, requires_grad=True)
        out = experts(rows, COUNTS, torch.zeros_like if dropout is not None else torch.empty_like, dropout)
        out.backward(torch.randn_like(out))
        outputs.append(out.detach())
        gradients.append(rows.grad)
    return outputs, [*gradients, *(parameter.grad for parameter in experts.parameters())]


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_outputs_and_all_gradients_are_those_of_one_product_an_expert(
    activation: str, dtype: torch.dtype, is_kept: bool, drops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = 2.0 * (torch.rand(sum(COUNTS), D_FF) > 0.5)
    dropout = factors.to(torch.bfloat16) if drops else None
    outputs, gradients = passes(activation, dtype, is_kept, dropout)
    used: list[object] = []
    monkeypatch.setattr(module, "has_grouped_products", lambda *_: used.append(None) or True)
    grouped_outputs, grouped_gradients = passes(activation, dtype, is_kept, dropout)
    assert len(used) == 2
    for got, expected in zip(grouped_outputs, outputs, strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(grouped_gradients, gradients, strict=True):
        assert got.dtype == expected.dtype
        assert (
            got - expected
        ).norm() <= 1e-2 * expected.norm()  # sums of two products are rounded differently


def test_the_ends_of_runs_are_sums_of_counts() -> None:
    assert run_ends(COUNTS, torch.device("cpu")).tolist() == [3, 3, 4, 13, 13]


def test_they_are_not_for_a_cpu() -> None:
    rows = torch.zeros(4, D_MODEL, dtype=torch.bfloat16)
    assert not has_grouped_products(rows, torch.zeros(2, D_MODEL, D_FF))
