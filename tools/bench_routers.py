"""What routing costs of an MoE layer: the router's forward and backward over the whole layer's, for every kind.

    python tools/bench_routers.py [--experts 8 64 256] [--routers KIND ...] [--rounds 5] [--markdown] [--json FILE]

CPU time of one thread. `over_layer`: routing alone, forward and backward, with losses and with the gradients of
`x` and of the router, over forward and backward of the layer that it is part of (the same router, with the gradients
of its experts in persistent buffers, as in training). `eval_over_layer`: the same two in validation, forward only.
Every kind has the settings of its defaults, so as many experts per token as these say, and no capacity limit.
Kinds whose experts become fewer are measured when they are few, for then the layer is at its cheapest: dense_to_sparse
after its switch, dselect_k with settled selectors. soft has about as many slots as tokens, as in its paper.
T tokens, D model width, F = 4 D hidden width, E experts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from measurement import Row, add_output_options, interleave, median_ratio, peak_memory_gib, report
from torch import Tensor, nn

from moe_cluster.output import run_main
from moe_train.config.kinds.objective import ConsistencyConfig, LanguageConfig
from moe_train.config.kinds.router.router import RouterConfig
from moe_train.config.kinds.router.soft import SoftRouterConfig
from moe_train.config.registry import REGISTRY
from moe_train.config.resolve import moe_spec
from moe_train.config.schema import ModelConfig, MoEConfig, Recipe
from moe_train.moe.experts import Experts
from moe_train.moe.layers.layer import MoELayer, moe_layer
from moe_train.moe.routing import Pass, RouteContext, Routing, TableRouter, Vocabulary
from moe_train.moe.rows import Rows
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.random import RandomStream, generator_for
from moe_train.results import MoEStats

VOCABULARY = 4096
LATE_STEP = 10_000
"""After every schedule of the routers' defaults."""
SETTLED = 1e3
"""Standard deviation of weights that have settled a smooth choice."""
OBJECTIVES = (ConsistencyConfig, LanguageConfig)
"""One of them allows a kind, if it can serve so many experts at all."""
MEASURES = ("routing", "layer", "eval_routing", "eval_layer")


def main() -> None:
    """Measure every kind at every number of experts and print the table."""
    options = _options()
    torch.set_num_threads(1)
    keep_freed_memory()
    tables = (Bench(num, options).rows(options.routers, options.rounds) for num in options.experts)
    report(tables, options, lambda: f"peak memory {peak_memory_gib():.1f} GiB")


def _options() -> argparse.Namespace:
    kinds = sorted(REGISTRY["moe.router"])
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Every router's time over its layer's.")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument(
        "--routers", nargs="+", default=kinds, choices=kinds, metavar="KIND", help="some of them"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--tokens", type=int, default=4096, help="a multiple of --sequence-length")
    parser.add_argument("--sequence-length", type=int, default=128, help="also the size of a routing group")
    parser.add_argument("--d-model", type=int, default=256)
    add_output_options(parser)
    options = parser.parse_args()
    if options.tokens < options.sequence_length or options.tokens % options.sequence_length:
        parser.error(f"--tokens={options.tokens}: must be a multiple of {options.sequence_length}")
    return options


class Bench:
    """All kinds at one number of experts, over the same experts and the same tokens."""

    def __init__(self, num_experts: int, options: argparse.Namespace):
        torch.manual_seed(0)
        self.num_experts, self.d_model = num_experts, options.d_model
        self.sequences, self.length = options.tokens // options.sequence_length, options.sequence_length
        self.x = torch.randn(options.tokens, options.d_model)
        self.grad = torch.randn_like(self.x)
        self.values = torch.randint(VOCABULARY, (self.sequences, self.length))
        self.experts = Experts(num_experts, options.d_model, 4 * options.d_model, "relu")
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.02)
        self.buffers = self.experts.keep_gradients()

    def rows(self, kinds: Iterable[str], rounds: int) -> list[Row]:
        """One row a kind; the kinds take turns in an order that varies."""
        measures: dict[str, Callable[[], float]] = {}
        for kind in kinds:
            config = REGISTRY["moe.router"][kind].config()
            assert isinstance(config, RouterConfig)
            if isinstance(config, SoftRouterConfig):
                config.slots_per_expert = max(1, self.length // self.num_experts)
            moe = MoEConfig(
                num_experts=self.num_experts, capacity_factor=None, eval_capacity_factor=None, router=config
            )
            problems = [[*config.check(Recipe(moe=moe, objective=objective()))] for objective in OBJECTIVES]
            if all(problems):
                print(f"{kind} is left out: {problems[0][0]}", file=sys.stderr)
                continue
            steps = self._steps(self._layer(moe))
            measures |= {f"{kind}/{name}": _seconds_of(step) for name, step in steps.items()}
        if not measures:
            return []
        with _Progress(f"{self.num_experts} experts", len(measures) * (rounds + 1)) as progress:
            seconds = interleave(
                {name: progress.counted(measure) for name, measure in measures.items()},
                budget_s=0,
                least=rounds,
            )
        measured = [name.removesuffix("/routing") for name in measures if name.endswith("/routing")]
        return [self._row(kind, {name: seconds[f"{kind}/{name}"] for name in MEASURES}) for kind in measured]

    def _row(self, kind: str, seconds: Mapping[str, list[float]]) -> Row:
        return {
            "router": kind,
            "num_experts": self.num_experts,
            "over_layer": median_ratio(seconds["routing"], seconds["layer"]),
            "eval_over_layer": median_ratio(seconds["eval_routing"], seconds["eval_layer"]),
            **{f"{name}_ms": 1e3 * statistics.median(seconds[name]) for name in MEASURES},
            "rounds": len(seconds["routing"]),
        }

    def _layer(self, moe: MoEConfig) -> MoELayer:
        """A layer with a router of its own and the experts of all."""
        spec = moe_spec(Recipe(model=ModelConfig(d_model=self.d_model, d_ff=1), moe=moe), self.num_experts)
        layer = moe_layer(spec, "bench")
        layer.experts.w_in, layer.experts.w_out = self.experts.w_in, self.experts.w_out
        layer.experts.buffers_for_gradients = self.buffers
        for parameter in layer.router.parameters():
            nn.init.normal_(parameter, std=SETTLED if moe.router.kind == "dselect_k" else 0.02)
        if isinstance(layer.router, TableRouter):
            vocabulary = Vocabulary.without_text(VOCABULARY)
            layer.router.table = layer.router.make_table(vocabulary, generator_for(0, "table"))
        return layer

    def _context(self, training: bool) -> RouteContext:
        forward_pass = Pass(training, 1.0, RandomStream(0, LATE_STEP))
        return RouteContext(forward_pass, Rows(torch.arange(self.sequences), self.values))

    def _steps(self, layer: MoELayer) -> dict[str, Callable[[], object]]:
        """What is measured of a layer, by the names in MEASURES."""
        training, validation = self._context(True), self._context(False)
        with torch.no_grad():
            upstream = [torch.randn_like(output) for output in _outputs(layer.router(self.x, training))]

        def routing() -> None:
            layer.router.zero_grad(set_to_none=True)
            routing = layer.router(self.x.detach().requires_grad_(), training)
            _backward(_outputs(routing), upstream, routing if isinstance(routing, Routing) else None)

        def whole_layer() -> None:
            layer.router.zero_grad(set_to_none=True)
            self.buffers.reset()
            y, stats = layer(self.x.detach().requires_grad_(), training)
            _backward([y], [self.grad], stats)

        eval_routing = torch.no_grad()(lambda: layer.router(self.x, validation))
        eval_layer = torch.no_grad()(lambda: layer(self.x, validation))
        return dict(zip(MEASURES, (routing, whole_layer, eval_routing, eval_layer), strict=True))


def _outputs(routing: Any) -> list[Tensor]:
    """What carries a router's gradient: the weights of edges, or the tables of a layer without edges."""
    if isinstance(routing, Routing):
        return [routing.weights]
    return [part for part in routing if isinstance(part, Tensor)]


def _backward(outputs: list[Tensor], grads: list[Tensor], given: Routing | MoEStats | None) -> None:
    """Backward from outputs and from the losses, each with its coefficient, as in training."""
    ends = list(zip(outputs, grads, strict=True))
    for name, loss in given.losses.items() if given else ():
        ends.append((loss, torch.tensor(given.coefficients[name])))
    if (
        given and given.policy
    ):  # what a draw was worth the loss of the whole model says: here, the same of each
        for learned in (given.policy.log_probability, given.policy.baseline):
            ends.append((learned, torch.full_like(learned, given.policy.coefficient / len(learned))))
    ends = [(tensor, grad) for tensor, grad in ends if tensor.requires_grad]
    if ends:
        torch.autograd.backward(*map(list, zip(*ends, strict=True)))


def _seconds_of(step: Callable[[], object]) -> Callable[[], float]:
    """Measure a step in CPU seconds."""

    def measure() -> float:
        began = time.process_time()
        step()
        return time.process_time() - began

    return measure


class _Progress:
    """A line on stderr, where that is a terminal or not, that says how far the measuring is."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        print(file=sys.stderr)

    def counted(self, measure: Callable[[], float]) -> Callable[[], float]:
        """`measure`, and the line renewed."""

        def call() -> float:
            seconds = measure()
            self.done += 1
            end = f"\r{self.what}: {self.done} of {self.total} measurements"
            print(end, end="", file=sys.stderr, flush=True)
            return seconds

        return call


if __name__ == "__main__":
    sys.exit(run_main(main))
