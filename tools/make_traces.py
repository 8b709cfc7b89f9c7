"""Makes the traces in tests/traces: rows of small real runs, healthy and sick, by which the detectors are tested.

    python tools/make_traces.py [NAME ...] [--to tests/traces] [--jobs 1]

Each trace is a run folder with the resolved recipe and the compressed rows. tests/traces/traces.json says what each of
them has: the detector that must name it, its layers and experts, and the step at which the illness begins; a healthy
one has none. Sick runs fall ill through their recipe where a recipe can do it. Where it cannot, a router or expert is
changed by hand during the run (`TAMPERING`): what a fault in a kernel or a damaged checkpoint does.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECIPE = """\
name: trace
steps: 300
log_every: 10
validate_every: 0
model: {num_layers: 4, d_model: 48, num_heads: 2}
moe: {every: 2, num_experts: 8, d_ff: 64}
data:
  corpus: {path: CORPUS}
  tokenizer: {vocab_size: 1024}
  sequence_length: 32
  global_batch: 32
  validation_sequences: 8
optim: {lr: 2e-3, schedule: {kind: cosine, warmup_steps: 30}}
checkpoint: {every: 0}
job: {threads: 1}
"""
"""1,024 tokens an update, MoE layers 1 and 3 of 4, whose places in the lists of a row are 0 and 1."""


OUT_OF_SIGHT = ("dead_experts", "router_collapse", "drop_storm", "unlearning_router")
"""What logits that were shifted by hand, and experts that never win, are rightly named too."""


@dataclass(frozen=True)
class Illness:
    """What a trace has, and where."""

    detector: str
    begins: int
    """Updates before it begins."""
    layers: tuple[int, ...] = ()
    """Places in the lists of a row; none: any."""
    experts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A run to make."""

    overrides: tuple[str, ...] = ()
    illness: Illness | None = None
    tampering: str | None = None
    workers: int = 1
    also: tuple[str, ...] = ()
    """Detectors that may rightly name it too."""


def router(kind: str, *options: str) -> tuple[str, ...]:
    """Returns the overrides that choose a router."""
    return (f"moe.router.kind={kind}", *options)


DROPLESS = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
NO_BALANCE = ("moe.router.balance_coefficient=0",)
WILD = ("moe.router.init_scale=10", "optim.lr=2e-2")
"""A router that begins with large logits, and learns fast."""


def biased(layer: int, biases: Mapping[int, float]) -> Callable[[Any, int], None]:
    """Adds to the logits of some experts of a layer from update 150 on, below all that the recipe knows of."""

    def change(trainer: Any, step: int) -> None:
        if step == 150:
            import torch

            gate = _router(trainer, layer)
            added = torch.zeros(gate.num_experts)
            added[list(biases)] = torch.tensor(list(biases.values()))
            logits = gate.logits
            gate.logits = lambda x, context: logits(x, context) + added

    return change


def enlarge(layer: int) -> Callable[[Any, int], None]:
    """Lets the logits of a layer grow by a twelfth from update to update, for 60 updates."""

    def change(trainer: Any, step: int) -> None:
        gate = _router(trainer, layer)
        gate.growth = 1.08 ** min(max(step - 150, 0), 60)
        if step == 0:
            logits = gate.logits
            gate.logits = lambda x, context: gate.growth * logits(x, context)

    return change


def twin(layer: int, first: int, second: int) -> Callable[[Any, int], None]:
    """Keeps an expert a copy of another one from update 150 on."""

    def change(trainer: Any, step: int) -> None:
        if step >= 150:
            for weight in _layer(trainer, layer).experts.parameters():
                weight.data[second] = weight.data[first]

    return change


def cut_off(layer: int) -> Callable[[Any, int], None]:
    """Lets no gradient reach a router from update 150 on."""

    def change(trainer: Any, step: int) -> None:
        if step == 150:
            for weight in _router(trainer, layer).parameters():
                weight.register_hook(lambda gradient: gradient * 0)

    return change


def _router(trainer: Any, layer: int) -> Any:
    return _layer(trainer, layer).router


def _layer(trainer: Any, layer: int) -> Any:
    from moe_train.moe.layers.layer import moe_layers_of

    return moe_layers_of(trainer.training_step.engine.model)[layer][1]


def poison(trainer: Any, step: int) -> None:
    """Makes a weight of the last expert not a number."""
    if step == 150:
        _layer(trainer, 1).experts.w_in.data[7, 0, 0] = float("nan")


def rush(trainer: Any, step: int) -> None:
    """Multiplies the learning rate by 40 for a few updates."""
    if step == 150:
        trainer.recovery.controls = trainer.recovery.controls.scaled("lr", 40.0, 156)


TAMPERING: Mapping[str, Callable[[Any, int], None]] = {
    "kill-0-3": biased(0, {3: -20.0}),
    "kill-1-2-6": biased(1, {2: -20.0, 6: -20.0}),
    "favour-0-5": biased(0, {5: 20.0}),
    "favour-1-0": biased(1, {0: 20.0}),
    "enlarge-0": enlarge(0),
    "enlarge-1": enlarge(1),
    "twin-1-2-6": twin(1, 2, 6),
    "cut-off-0": cut_off(0),
    "poison": poison,
    "rush": rush,
}

KINDS: Mapping[str, tuple[str, ...]] = {
    "switch": (),
    "top_k": router("top_k", "moe.router.balance_coefficient=0.01"),
    "gshard": router("gshard"),
    "deepseek": router("deepseek", "moe.router.k=2", *DROPLESS),
    "noisy_top_k": router("noisy_top_k"),
    "hierarchical": router(
        "hierarchical_top_k", *DROPLESS, "moe.router.num_groups=4", "moe.router.top_groups=2"
    ),
    "prototypes": router("prototypes"),
    "batch_priority": router("batch_priority", "model.architecture=encoder", "objective.kind=masked"),
    "expert_choice": router(
        "expert_choice", *DROPLESS, "model.architecture=encoder", "objective.kind=masked"
    ),
    "base": router("base", *DROPLESS),
    "sinkhorn": router("sinkhorn", *DROPLESS),
    "hash": router("hash"),
    "random": router("random"),
    "dselect_k": router("dselect_k", *DROPLESS),
    "smear": router("smear", *DROPLESS, "moe.router.segment=8"),
    "soft": router("soft", *DROPLESS, "model.architecture=encoder", "objective.kind=masked"),
    "reinforce": router("reinforce"),
    "dense_to_sparse": router(
        "dense_to_sparse",
        *DROPLESS,
        "moe.router.decay_steps=100",
        "moe.router.hard_step=150",
        "moe.router.balance_coefficient=0.01",
    ),
    "evomoe": router(
        "dense_to_sparse",
        *DROPLESS,
        "moe.router.diversify_steps=60",
        "moe.router.decay_steps=100",
        "moe.router.hard_step=120",
        "moe.router.balance_coefficient=0.01",
    ),
    "thor": router("thor", *DROPLESS, "objective.kind=consistency", "moe.num_experts=4"),
}
"""Every family of routers, healthy."""

TRACES: Mapping[str, Trace] = {
    **{f"healthy-{kind}": Trace(overrides) for kind, overrides in KINDS.items()},
    "healthy-switch-every": Trace(("log_every=1", "steps=150")),
    "healthy-switch-2": Trace(("moe.num_experts=2",)),
    "healthy-switch-64": Trace(("moe.num_experts=64", "moe.d_ff=16", "data.global_batch=64")),
    "healthy-top_k-32-every": Trace((*KINDS["top_k"], "moe.num_experts=32", "log_every=1", "steps=150")),
    "healthy-switch-dropless": Trace(DROPLESS),
    "dead-one": Trace((), Illness("dead_experts", 150, (0,), (3,)), "kill-0-3", also=OUT_OF_SIGHT),
    "dead-two-top_k": Trace(
        KINDS["top_k"], Illness("dead_experts", 150, (1,), (2, 6)), "kill-1-2-6", also=OUT_OF_SIGHT
    ),
    "dead-every": Trace(
        ("log_every=1", "steps=200"), Illness("dead_experts", 150, (0,), (3,)), "kill-0-3", also=OUT_OF_SIGHT
    ),
    "collapse-unbalanced": Trace(
        (*NO_BALANCE, *WILD), Illness("load_collapse", 0), also=("dead_experts", "drop_storm")
    ),
    "collapse-unbalanced-dropless": Trace(
        (*NO_BALANCE, *WILD, *DROPLESS), Illness("load_collapse", 0), also=("dead_experts", "router_collapse")
    ),
    "collapse-one-layer": Trace(
        DROPLESS,
        Illness("load_collapse", 150, (0,)),
        "favour-0-5",
        also=OUT_OF_SIGHT,
    ),
    "collapse-gshard": Trace(
        KINDS["gshard"],
        Illness("load_collapse", 150, (1,)),
        "favour-1-0",
        also=OUT_OF_SIGHT,
    ),
    "oscillation-deepseek": Trace(
        (*KINDS["deepseek"], "moe.router.bias_rate=0.3", "log_every=1", "steps=150"),
        Illness("load_oscillation", 0),
        also=("load_collapse", "dead_experts"),
    ),
    "logits-run-away": Trace((), Illness("router_collapse", 180, (0,)), "enlarge-0"),
    "logits-run-away-top_k": Trace(KINDS["top_k"], Illness("router_collapse", 180, (1,)), "enlarge-1"),
    "drops": Trace(
        ("moe.capacity_factor=0.4", "moe.min_capacity=1"), Illness("drop_storm", 0), also=("load_collapse",)
    ),
    "twins": Trace(
        ("monitor.similarity_every=10",), Illness("representation_collapse", 150, (1,)), "twin-1-2-6"
    ),
    "router-cut-off": Trace((), Illness("unlearning_router", 150, (0,)), "cut-off-0"),
    "not-a-number": Trace(
        ("stability.skip_non_finite=true", "stability.skip_limit=1000"), Illness("not_finite", 150), "poison"
    ),
    "spike": Trace(
        ("optim.clip=null",),
        Illness("loss_spike", 150),
        "rush",
        also=("load_collapse", "dead_experts", "router_collapse", "drop_storm"),
    ),
    "device-imbalance": Trace(
        (*NO_BALANCE, *WILD, *DROPLESS, "parallel.expert=2"),
        Illness("device_imbalance", 0),
        workers=2,
        also=("load_collapse", "dead_experts", "router_collapse"),
    ),
}


def make(name: str, folder: Path, corpus: Path) -> str:
    """Makes a trace in `folder`; returns what went wrong, nothing if nothing did."""
    trace = TRACES[name]
    with tempfile.TemporaryDirectory() as scratch:
        recipe, run = Path(scratch, "trace.yaml"), Path(scratch, "run")
        recipe.write_text(RECIPE.replace("CORPUS", str(corpus)))
        words = ["run", str(recipe), "--run-dir", str(run), "--workers", str(trace.workers), *trace.overrides]
        command = [sys.executable, __file__, "--train", name, *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (run / "metrics.jsonl").exists():
            return f"{name}: {ended.stdout}{ended.stderr}"
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        text = (run / "recipe.yaml").read_text().replace(str(corpus), "corpus")
        (target / "recipe.yaml").write_text(text)
        with gzip.GzipFile(target / "metrics.jsonl.gz", "wb", mtime=0) as file:
            file.write((run / "metrics.jsonl").read_bytes())
    return "" if ended.returncode == 0 else f"{name}: ended with {ended.returncode}: {ended.stderr[-400:]}"


def train(name: str, words: list[str]) -> int:
    """Runs a trace's command in this process, and tampers with it."""
    from moe_train import cli
    from moe_train.trainer import Trainer

    change = TAMPERING.get(TRACES[name].tampering or "")
    step = Trainer._step

    def tampered(trainer: Trainer) -> Any:
        if change is not None:
            change(trainer, trainer.step)
        return step(trainer)

    Trainer._step = tampered  # type: ignore[method-assign]
    return cli.main(words)


def labels() -> dict[str, Any]:
    """Returns what every trace has, JSON-ready."""
    return {
        name: None
        if trace.illness is None
        else {
            "detector": trace.illness.detector,
            "begins": trace.illness.begins,
            "layers": list(trace.illness.layers),
            "experts": list(trace.illness.experts),
            "also": list(trace.also),
        }
        for name, trace in TRACES.items()
    }


def main() -> int:
    if sys.argv[1:2] == ["--train"]:
        return train(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="traces to make; none: all")
    parser.add_argument("--to", type=Path, default=ROOT / "tests" / "traces", help="folder of the traces")
    parser.add_argument("--jobs", type=int, default=1, help="traces made at once")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    (arguments.to / "traces.json").write_text(json.dumps(labels(), indent=1) + "\n")
    with tempfile.TemporaryDirectory() as corpus:
        for page in sorted((ROOT / "docs").glob("*.md")):
            shutil.copyfile(page, Path(corpus, f"{page.stem}.txt"))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            made = pool.map(lambda name: make(name, arguments.to, Path(corpus)), arguments.names or TRACES)
            failed = [each for each in made if each]
    print("\n".join(failed) or "all traces were made")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
