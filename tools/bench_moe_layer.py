"""Forward and backward of one MoE layer against its bare matrix products, in CPU time of one thread.

    python tools/bench_moe_layer.py [--quick] [--markdown] [--json FILE] [--budget-s 480]

The floor is the bare products of the same routing on rows already in expert order, by hand and without autograd:
weight gradients in place, other results in fresh memory, an expert at a time. `over_reused` compares with a
stricter one, which puts every result into memory that is already there; no layer can beat that.
Beside our layer (dropless) stand DeepSpeed's and, for top-1, Hugging Face's Switch layer, at capacity factor
1.25: they drop tokens, so they do fewer products where the routing is uneven and more (padding) where it is even.
T tokens, D model width, F = 4 D hidden width, E experts.
"""

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, product

import torch
import torch.distributed as dist
from measurement import Row, add_output_options, interleave, median_ratio, peak_memory_gib, report
from torch import Tensor, nn

from moe_cluster.output import run_main
from moe_train.config.kinds.router.top_k import TopKRouterConfig
from moe_train.config.resolve import moe_spec
from moe_train.config.schema import ModelConfig, MoEConfig, Recipe
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.layers.routed import RoutedLayer
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.random import RandomStream

CAPACITY_FACTOR = 1.25
LEAST_ROUNDS = 3
SEQUENCE_LENGTH = 128


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    num_experts: int
    d_model: int
    top_k: int
    dtype: torch.dtype
    num_tokens: int
    device: str = "cpu"

    @property
    def cost(self) -> float:
        """Work in units of its own, to share the time out."""
        return self.d_model**2 * self.top_k * self.dtype.itemsize * (1 + self.num_experts / 64)


def main() -> None:
    """Measure every case and print the table."""
    options = _options()
    torch.set_num_threads(1)
    keep_freed_memory()
    _start_deepspeed()
    report(_tables(options), options, lambda: f"peak memory {peak_memory_gib():.1f} GiB")


def _tables(options: argparse.Namespace) -> Iterator[list[Row]]:
    cases = list(_cases(options))
    remaining_s, remaining_cost = options.budget_s, sum(case.cost for case in cases)
    for case in cases:
        began = time.perf_counter()
        found = measure(case, budget_s=0.7 * remaining_s * case.cost / remaining_cost)
        remaining_s, remaining_cost = remaining_s - (time.perf_counter() - began), remaining_cost - case.cost
        yield found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="One MoE layer against its bare matrix products."
    )
    parser.add_argument("--quick", action="store_true", help="d_model 256 in fp32 with 8 and 64 experts only")
    add_output_options(parser)
    parser.add_argument("--budget-s", type=float, default=480.0, help="wall time of the whole table, about")
    parser.add_argument("--tokens", type=int, default=4096, help=f"a multiple of {SEQUENCE_LENGTH}")
    options = parser.parse_args()
    if options.tokens < SEQUENCE_LENGTH or options.tokens % SEQUENCE_LENGTH:
        parser.error(f"--tokens={options.tokens}: must be a multiple of {SEQUENCE_LENGTH}")
    return options


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    if options.quick:
        table = product((torch.float32,), (256,), (8, 64), (1, 2))
    else:
        table = product((torch.float32, torch.bfloat16), (256, 512), (8, 32, 64), (1, 2))
    for dtype, d_model, num_experts, top_k in table:
        yield Case(num_experts, d_model, top_k, dtype, options.tokens)


def measure(case: Case, *, budget_s: float) -> list[dict[str, object]]:
    """The rows of one case: every layer's CPU time and its ratio to the floor."""
    torch.manual_seed(0)
    x = torch.randn(case.num_tokens, case.d_model, dtype=case.dtype)
    grad = torch.randn_like(x)
    layer = our_layer(case)
    products = Products.of(case, layer, x)
    steps = {
        "floor": products.floor,
        "reused": products.reusing_memory(),
        "moe_train": ours(case, layer, x, grad),
    }
    steps["deepspeed"] = _step(_deepspeed_layer(case), x, grad)
    if case.top_k == 1:
        steps["huggingface"] = _step(_huggingface_layer(case), x, grad)
    timed = {name: (lambda step=step: _cpu_seconds(step)) for name, step in steps.items()}
    seconds = interleave(timed, budget_s=budget_s, least=LEAST_ROUNDS)
    return [
        {
            "layer": name,
            "num_experts": case.num_experts,
            "d_model": case.d_model,
            "top_k": case.top_k,
            "dtype": str(case.dtype).removeprefix("torch."),
            "over_floor": median_ratio(seconds[name], seconds["floor"]),
            "over_reused": median_ratio(seconds[name], seconds["reused"]),
            "milliseconds": 1e3 * sorted(seconds[name])[len(seconds[name]) // 2],
            "rounds": len(seconds[name]),
            "tokens": "all" if name == "moe_train" else f"dropped beyond capacity factor {CAPACITY_FACTOR}",
        }
        for name in steps
        if name not in ("floor", "reused")
    ]


def _cpu_seconds(step: Callable[[], None]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def our_layer(case: Case) -> MoELayer:
    """Our layer, dropless, with a router in fp32."""
    router = TopKRouterConfig(k=case.top_k, normalize=case.top_k > 1)
    recipe = Recipe(
        model=ModelConfig(d_model=case.d_model), moe=MoEConfig(capacity_factor=None, router=router)
    )
    layer = RoutedLayer(moe_spec(recipe, case.num_experts), "bench")
    layer.to(case.device, case.dtype)
    layer.router.float()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return layer


def _context(case: Case) -> RouteContext:
    sequences = case.num_tokens // SEQUENCE_LENGTH
    rows = Rows(
        torch.arange(sequences, device=case.device),
        torch.zeros(sequences, SEQUENCE_LENGTH, dtype=torch.long, device=case.device),
    )
    return RouteContext(Pass(training=True, progress=0.0, random=RandomStream(0, 0)), rows)


def ours(case: Case, layer: MoELayer, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """One forward and backward as the engine makes them: gradients of experts in persistent buffers."""
    buffers, context = layer.experts.keep_gradients(), _context(case)

    def step() -> None:
        buffers.reset()
        layer.router.weight.grad = None
        y, _ = layer(x.detach().requires_grad_(), context)
        y.backward(grad)

    return step


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    """One forward and backward of somebody else's layer, which takes [1, T, D]."""

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        y = layer(x.detach().unsqueeze(0).requires_grad_())
        (y[0] if isinstance(y, tuple) else y).backward(grad.unsqueeze(0))

    return step


@dataclass(frozen=True)
class Products:
    """The bare products (and relu) of one routing on N rows, forward and backward; the weights are our layer's."""

    rows: Tensor
    grad_y: Tensor
    runs: list[tuple[int, slice]]
    w_in: Tensor
    w_out: Tensor
    grad_in: Tensor
    grad_out: Tensor

    @classmethod
    def of(cls, case: Case, layer: MoELayer, x: Tensor) -> "Products":
        """Random rows, as many for each expert as the layer's router sends of `x`."""
        with torch.no_grad():
            chosen = layer.router(x, _context(case)).expert_ids
        counts = chosen.bincount(minlength=case.num_experts).tolist()
        runs = [
            (e, slice(end - n, end))
            for e, (n, end) in enumerate(zip(counts, accumulate(counts), strict=True))
            if n
        ]
        rows, grad_y = (
            torch.randn(chosen.numel(), case.d_model, dtype=case.dtype, device=case.device) for _ in range(2)
        )
        w_in, w_out = layer.experts.w_in.detach(), layer.experts.w_out.detach()
        return cls(rows, grad_y, runs, w_in, w_out, torch.empty_like(w_in), torch.empty_like(w_out))

    def reusing_memory(self) -> Callable[[], None]:
        """All experts forward, then all backward, and nothing is ever allocated."""
        y, grad_rows = torch.empty_like(self.rows), torch.empty_like(self.rows)
        hidden = self.rows.new_empty(self.rows.shape[0], self.w_in.shape[2])
        scratch = hidden.new_empty(max(run.stop - run.start for _, run in self.runs), hidden.shape[1])

        def step() -> None:
            for expert, run in self.runs:
                torch.mm(self.rows[run], self.w_in[expert], out=hidden[run]).relu_()
                torch.mm(hidden[run], self.w_out[expert], out=y[run])
            for expert, run in self.runs:
                grad_hidden = scratch[: run.stop - run.start]
                torch.mm(hidden[run].t(), self.grad_y[run], out=self.grad_out[expert])
                torch.mm(self.grad_y[run], self.w_out[expert].t(), out=grad_hidden)
                torch.ops.aten.threshold_backward.grad_input(
                    grad_hidden, hidden[run], 0, grad_input=grad_hidden
                )
                torch.mm(self.rows[run].t(), grad_hidden, out=self.grad_in[expert])
                torch.mm(grad_hidden, self.w_in[expert].t(), out=grad_rows[run])

        return step

    def floor(self) -> None:
        """The products as one writes them down."""
        for expert, run in self.runs:
            hidden = torch.mm(self.rows[run], self.w_in[expert]).relu_()
            torch.mm(hidden, self.w_out[expert])
            torch.mm(hidden.t(), self.grad_y[run], out=self.grad_out[expert])
            grad_hidden = torch.mm(self.grad_y[run], self.w_out[expert].t()).mul_(hidden > 0)
            torch.mm(self.rows[run].t(), grad_hidden, out=self.grad_in[expert])
            torch.mm(grad_hidden, self.w_in[expert].t())


def _start_deepspeed() -> None:
    """DeepSpeed's layer wants a process group, even alone; its advice is not wanted here."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def _deepspeed_layer(case: Case) -> nn.Module:
    from deepspeed.moe.layer import MoE

    hidden = 4 * case.d_model
    expert = nn.Sequential(
        nn.Linear(case.d_model, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, case.d_model, bias=False)
    )
    layer = MoE(
        case.d_model,
        expert,
        num_experts=case.num_experts,
        k=case.top_k,
        capacity_factor=CAPACITY_FACTOR,
        use_tutel=False,
    )
    layer.set_deepspeed_parallelism()
    return layer.to(case.dtype)


def _huggingface_layer(case: Case) -> nn.Module:
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersSparseMLP,
    )

    config = SwitchTransformersConfig(
        d_model=case.d_model,
        d_ff=4 * case.d_model,
        num_experts=case.num_experts,
        expert_capacity=int(CAPACITY_FACTOR * case.num_tokens / case.num_experts),
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    return SwitchTransformersSparseMLP(config).to(case.dtype)


if __name__ == "__main__":
    sys.exit(run_main(main))
