"""Two kernels that routers use on the CPU, each against what else computes the same: CPU time of one thread.

    python tools/bench_routing_kernels.py [--rounds 7] [--markdown] [--json FILE]

`balanced_assignment` against scipy's exact solver on as many copies of each expert as it has places; the scores of
`skewed` prefer the same experts, which makes ways long. `uniform` against the same hash by torch's operations.
`speedup` is the median over rounds of the other's time over ours.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from measurement import Row, add_output_options, interleave, median_ratio, report
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moe_cluster.output import run_main
from moe_kernels.ops.assignment import balanced_assignment
from moe_kernels.ops.uniform import uniform
from moe_kernels.reference.uniform import uniform as uniform_by_torch
from moe_kernels.select import choose

GROUPS, TOKENS = 32, 128


def main() -> None:
    """Measure and print; `--json` also writes the rows."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Routers' small kernels against what else computes the same."
    )
    parser.add_argument("--rounds", type=int, default=7)
    add_output_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        assignment(num_experts, skew, options.rounds) for num_experts in (8, 64, 256) for skew in (0.0, 1.0)
    ]
    rows.append(draws(options.rounds))
    report([rows], options, lambda: f"library: {choose('cpu').kind}")


def assignment(num_experts: int, skew: float, rounds: int) -> Row:
    """32 groups of 128 tokens."""
    torch.manual_seed(0)
    scores = torch.randn(GROUPS, TOKENS, num_experts) + skew * torch.randn(num_experts)
    case = f"{GROUPS} x {TOKENS} tokens, {num_experts} experts{', skewed' if skew else ''}"
    measures = {"ours": lambda: balanced_assignment(scores), "other": lambda: _by_scipy(scores)}
    return _row("balanced_assignment", case, "scipy", measures, rounds)


def draws(rounds: int) -> Row:
    """As many as the jitter of 32 sequences of 128 tokens, 256 wide."""
    keys, count = torch.arange(32, dtype=torch.int32), 128 * 256
    measures = {
        "ours": lambda: uniform(keys, keys, count),
        "other": lambda: uniform_by_torch(keys, keys, count),
    }
    return _row("uniform", f"32 x {count} numbers", "torch", measures, rounds)


def _by_scipy(scores: Tensor) -> list[object]:
    copies = scores.double().repeat_interleave(-(-TOKENS // scores.shape[2]), 2).numpy()
    return [linear_sum_assignment(group, maximize=True) for group in copies]


def _row(
    operation: str, case: str, against: str, measures: dict[str, Callable[[], object]], rounds: int
) -> Row:
    timed = {name: (lambda measure=measure: _seconds(measure)) for name, measure in measures.items()}
    times = interleave(timed, budget_s=0, least=rounds)
    return {
        "operation": operation,
        "case": case,
        "ours_ms": 1000 * statistics.median(times["ours"]),
        "against": against,
        "other_ms": 1000 * statistics.median(times["other"]),
        "speedup": median_ratio(times["other"], times["ours"]),
    }


def _seconds(measure: Callable[[], object]) -> float:
    began = time.process_time()
    measure()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(run_main(main))
