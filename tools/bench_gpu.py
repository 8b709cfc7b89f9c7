"""What kernels and a layer cost on one GPU, against what torch does there.

    python tools/bench_gpu.py [--rounds 20] [--markdown] [--json FILE]

Times are between events of the GPU's stream, gaps between launches included, medians over rounds in turn.
`draws`: uniform numbers by a hash against torch's generator. `router`: statistics in one pass against torch's
operations (bench_router.py). `exchange`: dispatch and combine, forward and backward, of one process against four plain
copies of as many rows. `layer`: forward and backward of an MoE layer (dropless) against its bare products, expert by
expert (bench_moe_layer.py), and against batched products of equal shares, which no routing gives.
T tokens, K choices, D model width, F = 4 D hidden width, E experts.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping

import torch
from bench_moe_layer import Case, Products, our_layer, ours
from bench_router import by_torch, one_pass
from measurement import Row, add_output_options, interleave, median_ratio, report
from torch import Tensor

from moe_cluster.output import run_main
from moe_kernels.exchange import Exchange
from moe_kernels.ops.uniform import uniform
from moe_kernels.select import choose

DEVICE = torch.device("cuda", 0)
DRAWS = ((32, 1024 * 64), (32, 1024 * 1024))
"""Streams, numbers of each."""
ROUTERS = ((16384, 8, 1), (16384, 64, 2), (16384, 256, 8))
"""T, E, K."""
EXCHANGES = ((16384, 1024, 64, 2), (16384, 4096, 64, 2), (4096, 1024, 8, 1))
"""T, D, E, K."""
LAYERS = ((16384, 1024, 8, 1), (16384, 1024, 64, 2), (16384, 4096, 8, 2))
Step = Callable[[], object]


def main() -> None:
    """Measure and print; `--json` also writes the rows."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Kernels and a layer on one GPU.")
    parser.add_argument("--rounds", type=int, default=20)
    add_output_options(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    tables = [[measure(*size, options.rounds) for size in sizes] for measure, sizes in CASES]
    name = torch.cuda.get_device_name(DEVICE)
    for table in tables if options.markdown else ():
        report([table], options, lambda: name)
    if not options.markdown:
        report(tables, options, lambda: f"{name}; library: {choose('cuda').kind}; torch {torch.__version__}")


def draws(streams: int, count: int, rounds: int) -> Row:
    """Numbers for the noise of a router."""
    keys = torch.arange(streams, dtype=torch.int32, device=DEVICE)
    steps = {
        "ours": lambda: uniform(keys, keys, count),
        "torch": lambda: torch.rand(streams, count, device=DEVICE),
    }
    times = measured(steps, rounds)
    case = {"what": "draws", "streams": streams, "count": count}
    return {**case, **medians(times), "speedup": median_ratio(times["torch"], times["ours"])}


def router(tokens: int, num_experts: int, top_k: int, rounds: int) -> Row:
    """Forward and backward of a router's statistics."""
    logits = torch.randn(tokens, num_experts, device=DEVICE, requires_grad=True)
    upstream = [torch.randn(shape, device=DEVICE) for shape in ((tokens, top_k), (num_experts,), ())]

    def step(work: Callable[..., tuple[Tensor, ...]]) -> Step:
        return lambda: torch.autograd.grad(work(logits, top_k)[:3], logits, upstream)

    times = measured({"ours": step(one_pass), "torch": step(by_torch)}, rounds)
    case = {"what": "router", "T": tokens, "E": num_experts, "K": top_k}
    return {**case, **medians(times), "speedup": median_ratio(times["torch"], times["ours"])}


def exchange(tokens: int, width: int, num_experts: int, top_k: int, rounds: int) -> Row:
    """Dispatch and combine of one process, forward and backward, in bfloat16."""
    row_bytes = 2 * width * tokens * top_k
    exchange = Exchange.join(
        None, num_experts, 30, slab_bytes=row_bytes + (1 << 20), num_slabs=8, device=DEVICE
    )
    x = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    expert_ids = torch.rand(tokens, num_experts, device=DEVICE).topk(top_k).indices.int()
    weights = torch.rand(tokens, top_k, device=DEVICE, requires_grad=True)
    grad = torch.randn_like(x)
    source, target = (
        torch.randn(tokens * top_k, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)
    )

    def ours() -> None:
        sent = exchange.dispatch(x, expert_ids)
        exchange.combine(sent.rows, weights, sent).backward(grad)
        x.grad = weights.grad = None

    def copies() -> None:
        for _ in range(4):
            target.copy_(source)

    times = measured({"ours": ours, "copies": copies}, rounds)
    exchange.check()
    case = {"what": "exchange", "T": tokens, "D": width, "E": num_experts, "K": top_k}
    return {**case, **medians(times), "over_copies": median_ratio(times["ours"], times["copies"])}


def layer(tokens: int, width: int, num_experts: int, top_k: int, rounds: int) -> Row:
    """Forward and backward of a layer in bfloat16, its router in float32."""
    case = Case(num_experts, width, top_k, torch.bfloat16, tokens, device="cuda")
    x = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16)
    with torch.device(DEVICE):
        layer = our_layer(case)
        products = Products.of(case, layer, x)
    steps = {"ours": ours(case, layer, x, torch.randn_like(x)), "floor": products.floor}
    times = measured({**steps, "batched": batched(case, layer)}, rounds)
    ratios = {f"over_{name}": median_ratio(times["ours"], times[name]) for name in ("floor", "batched")}
    flops = 3 * 2 * 2 * tokens * top_k * 4 * width**2
    rate = flops / statistics.median(times["ours"]) / 1e12
    size = {"what": "layer", "T": tokens, "D": width, "E": num_experts, "K": top_k}
    return {**size, **medians(times), **ratios, "ours_tflops": rate}


def batched(case: Case, layer: torch.nn.Module) -> Step:
    """The six products of all experts at once, each with as many rows."""
    share = case.num_tokens * case.top_k // case.num_experts
    rows = torch.randn(case.num_experts, share, case.d_model, device=DEVICE, dtype=case.dtype)
    w_in, w_out = layer.experts.w_in.detach(), layer.experts.w_out.detach()

    def step() -> None:
        hidden = torch.bmm(rows, w_in).relu_()
        torch.bmm(hidden, w_out)
        torch.bmm(hidden.transpose(1, 2), rows)
        grad_hidden = torch.bmm(rows, w_out.transpose(1, 2)).mul_(hidden > 0)
        torch.bmm(rows.transpose(1, 2), grad_hidden)
        torch.bmm(grad_hidden, w_in.transpose(1, 2))

    return step


def measured(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, round by round."""
    measures = {name: (lambda step=step: seconds(step)) for name, step in steps.items()}
    for measure in measures.values():
        measure()
    return interleave(measures, budget_s=0, least=rounds)


def seconds(step: Step) -> float:
    """Of the GPU's stream."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    step()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1e3


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """In milliseconds."""
    return {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}


CASES = ((draws, DRAWS), (router, ROUTERS), (exchange, EXCHANGES), (layer, LAYERS))

if __name__ == "__main__":
    sys.exit(run_main(main))
