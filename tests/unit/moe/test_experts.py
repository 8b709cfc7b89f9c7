"""Experts against a plain loop with autograd: every activation, uneven and empty experts, kept gradients."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_train.moe.experts import Experts

D_MODEL, D_FF = 5, 7
COUNTS = [3, 0, 1, 9, 0]


def _experts(activation: str, dtype: torch.dtype = torch.float32) -> Experts:
    torch.manual_seed(0)
    experts = Experts(len(COUNTS), D_MODEL, D_FF, activation).to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    return experts


def _loop(experts: Experts, rows: Tensor, counts: list[int]) -> Tensor:
    """The slow, obviously right twin."""
    outputs, start = [], 0
    for expert, count in enumerate(counts):
        x, start = rows[start : start + count], start + count
        hidden = x @ experts.w_in[expert]
        if experts.activation == "relu":
            active = F.relu(hidden)
        elif experts.activation == "gelu":
            active = F.gelu(hidden)
        else:
            assert experts.w_gate is not None
            gate = F.silu if experts.activation == "swiglu" else F.gelu
            active = gate(x @ experts.w_gate[expert]) * hidden
        outputs.append(active @ experts.w_out[expert])
    return torch.cat(outputs)


def _gradients(experts: Experts) -> list[Tensor]:
    grads = [parameter.grad for parameter in experts.parameters()]
    assert all(grad is not None for grad in grads)
    return [grad.clone() for grad in grads if grad is not None]


def _expected(experts: Experts, rows: Tensor, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = rows.clone().requires_grad_()
    weights = list(experts.parameters())
    grads = torch.autograd.grad(_loop(experts, x, COUNTS), [x, *weights], grad)
    return grads[0], list(grads[1:])


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("is_kept", [False, True])
def test_outputs_and_all_gradients_are_those_of_a_plain_loop(activation, dtype, tolerance, is_kept):
    experts = _experts(activation, dtype)
    rows = torch.randn(sum(COUNTS), D_MODEL, dtype=dtype, requires_grad=True)
    grad = torch.randn(sum(COUNTS), D_MODEL, dtype=dtype)
    expected_rows, expected_weights = _expected(experts, rows.detach(), grad)
    expected = _loop(experts, rows.detach(), COUNTS)
    if is_kept:
        for tensor in experts.keep_gradients().tensors:
            tensor.fill_(float("nan"))  # what a first backward pass must overwrite
    out = experts(rows, COUNTS)
    out.backward(grad)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(rows.grad, expected_rows, **close)
    for got, wanted in zip(_gradients(experts), expected_weights, strict=True):
        torch.testing.assert_close(got, wanted, **close)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
def test_gradients_agree_with_finite_differences(activation):
    experts = _experts(activation, torch.float64)
    rows = torch.randn(sum(COUNTS), D_MODEL, dtype=torch.float64, requires_grad=True)
    weights = list(experts.parameters())

    def apply(x: Tensor, *_: Tensor) -> Tensor:
        return experts(x, COUNTS)

    assert torch.autograd.gradcheck(apply, (rows, *weights))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_kept_gradients_add_up_over_backward_passes_until_they_are_reset(activation):
    experts = _experts(activation)
    rows, grad = torch.randn(2, sum(COUNTS), D_MODEL).unbind(0)
    _, once = _expected(experts, rows, grad)
    buffers = experts.keep_gradients()
    for backward_passes in (2, 1):
        buffers.reset()
        for _ in range(backward_passes):
            experts(rows, COUNTS).backward(grad)
        for got, wanted in zip(_gradients(experts), once, strict=True):
            torch.testing.assert_close(got, backward_passes * wanted)


def test_two_forward_passes_may_precede_their_backward_passes():
    experts = _experts("relu")
    first, second = torch.randn(2, sum(COUNTS), D_MODEL).unbind(0)
    grad = torch.randn(sum(COUNTS), D_MODEL)
    wanted = [
        a + b
        for a, b in zip(_expected(experts, first, grad)[1], _expected(experts, second, grad)[1], strict=True)
    ]
    experts.keep_gradients()
    outputs = [experts(first, COUNTS), experts(second, COUNTS)]
    for out in outputs:
        out.backward(grad)
    for got, expected in zip(_gradients(experts), wanted, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_gradient_scale_acts_on_weights_and_not_on_rows(is_kept):
    experts = _experts("relu")
    rows = torch.randn(sum(COUNTS), D_MODEL, requires_grad=True)
    grad = torch.randn(sum(COUNTS), D_MODEL)
    expected_rows, expected_weights = _expected(experts, rows.detach(), grad)
    experts.gradient_scale = 0.25
    if is_kept:
        experts.keep_gradients()
    experts(rows, COUNTS).backward(grad)
    torch.testing.assert_close(rows.grad, expected_rows)
    for got, wanted in zip(_gradients(experts), expected_weights, strict=True):
        torch.testing.assert_close(got, 0.25 * wanted)


@pytest.mark.parametrize("is_kept", [False, True])
def test_products_in_bf16_give_gradients_in_the_precision_of_the_weights(is_kept):
    experts = _experts("gelu")
    rows, grad = torch.randn(2, sum(COUNTS), D_MODEL, dtype=torch.bfloat16).unbind(0)
    _, wanted = _expected(experts, rows.float(), grad.float())
    if is_kept:
        experts.keep_gradients()
    experts(rows.requires_grad_(), COUNTS).backward(grad)
    for got, expected in zip(_gradients(experts), wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=5e-2, atol=5e-2)


def test_without_any_row_gradients_are_zero():
    experts = _experts("swiglu")
    for tensor in experts.keep_gradients().tensors:
        tensor.fill_(float("nan"))
    rows = torch.empty(0, D_MODEL, requires_grad=True)
    out = experts(rows, [0] * len(COUNTS))
    out.backward(torch.empty(0, D_MODEL))
    assert out.shape == (0, D_MODEL)
    assert all(not grad.any() for grad in _gradients(experts))


NEW_NUMBERS_OF_ROWS = """
import resource, sys, torch
from moe_train.moe.experts import Experts
torch.set_num_threads(1)
experts = Experts(1, 8, 512, sys.argv[1])
for parameter in experts.parameters():
    torch.nn.init.normal_(parameter)

def step(rows):
    experts(torch.ones(rows, 8, requires_grad=True), [rows]).sum().backward()

for _ in range(5):
    step(500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for rows in range(200, 500):
    step(rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_new_numbers_of_rows_leave_nothing_behind_in_memory(activation: str) -> None:
    """oneDNN keeps a program for each: 80 MiB here with gelu, 200 with geglu."""
    words = [sys.executable, "-c", NEW_NUMBERS_OF_ROWS, activation]
    grown_kib = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert grown_kib < 50 * 1024
