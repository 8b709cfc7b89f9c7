"""Experts on a GPU: one product of all experts for each matrix against one product an expert."""

import pytest
import torch

from moe_train.moe import experts as module
from moe_train.moe.experts import Experts
from moe_train.moe.grouped import has_grouped_products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
COUNTS = [300, 0, 1, 900, 0, 7]
D_MODEL, D_FF = 256, 512


def passes(activation: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    experts = Experts(len(COUNTS), D_MODEL, D_FF, activation).cuda()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    buffers = experts.keep_gradients()
    rows = torch.randn(sum(COUNTS), D_MODEL, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for _ in range(2):
        out = experts(rows, COUNTS)
        out.backward(torch.ones_like(out))
    return [out.detach(), rows.grad, *buffers.tensors]


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
def test_all_experts_at_once_are_as_one_after_the_other(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.zeros(1, D_MODEL, device="cuda", dtype=torch.bfloat16)
    if not has_grouped_products(rows, torch.zeros(1, D_MODEL, D_FF)):
        pytest.skip("this GPU has no kernel for grouped products")
    at_once = passes(activation)
    monkeypatch.setattr(module, "has_grouped_products", lambda *_: False)
    for got, expected in zip(at_once, passes(activation), strict=True):
        assert (got - expected).norm() <= 1e-2 * expected.norm()
