"""Router statistics in one pass against the torch operations that compute the same: CPU time, forward and backward.

    python tools/bench_router.py [--rounds 9] [--threads 1] [--markdown] [--json FILE]

Both give scores, choices, weights, loads, importance and the sum of squared log sum exps of the same logits; backward
starts from gradients of weights, importance and that sum, as a router with both losses has them. `speedup` and
`forward_speedup` are medians over rounds of torch's time over ours, `speedup` with backward and `forward_speedup`
without it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from measurement import Row, add_output_options, interleave, median_ratio, peak_memory_gib, report
from torch import Tensor

from moe_cluster.output import run_main
from moe_kernels.ops.router import router_statistics
from moe_kernels.select import choose

SIZES = ((8192, 64, 2), (8192, 8, 1), (8192, 8, 2), (8192, 128, 8), (2048, 1024, 8))
"""Tokens, experts, choices."""
Statistics = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def main() -> None:
    """Measure and print; `--json` also writes the rows."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Router statistics in one pass against torch's operations."
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    add_output_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(*size, options.rounds) for size in SIZES]
    run_by = f"{options.threads} threads; library: {choose('cpu').kind}"
    report([rows], options, lambda: f"{run_by}; peak memory {peak_memory_gib():.1f} GiB")


def measure(tokens: int, num_experts: int, top_k: int, rounds: int) -> Row:
    """Times in ms, medians over rounds."""
    torch.manual_seed(0)
    logits = torch.randn(tokens, num_experts, requires_grad=True)
    upstream = (torch.randn(tokens, top_k), torch.randn(num_experts), torch.randn(()))
    works = {"ours": one_pass, "torch": by_torch}
    measures = {
        f"{name}_{part}": lambda work=work, part=part: _timed(work, logits, upstream, part == "both")
        for name, work in works.items()
        for part in ("forward", "both")
    }
    times = interleave(measures, budget_s=0, least=rounds)
    return {
        "tokens": tokens,
        "num_experts": num_experts,
        "top_k": top_k,
        **{f"{name}_ms": 1000 * statistics.median(seconds) for name, seconds in times.items()},
        "forward_speedup": median_ratio(times["torch_forward"], times["ours_forward"]),
        "speedup": median_ratio(times["torch_both"], times["ours_both"]),
    }


def one_pass(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights, importance, z; then expert ids and loads, which have no gradient."""
    result = router_statistics(logits, top_k)
    return result.weights, result.importance, result.z, result.expert_ids, result.loads


def by_torch(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same by one operation after another."""
    scores = logits.softmax(1)
    weights, expert_ids = scores.topk(top_k)
    loads = torch.bincount(expert_ids.flatten(), minlength=logits.shape[1])
    return weights, scores.sum(0), logits.logsumexp(1).square().sum(), expert_ids, loads


def _timed(work: Statistics, logits: Tensor, upstream: tuple[Tensor, ...], backward: bool) -> float:
    began = time.process_time()
    with torch.set_grad_enabled(backward):
        results = work(logits, upstream[0].shape[1])
    if backward:
        torch.autograd.grad(results[:3], logits, upstream)
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(run_main(main))
