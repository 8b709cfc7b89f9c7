"""The rules that need more than one field: every problem of a recipe, in sentences, before anything starts.

`moe-train show` prints them all; `run` and `submit` refuse a recipe that has any.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from moe_train.config.kinds.kind import KindConfig
from moe_train.config.placement import placement_problems
from moe_train.config.plug_ins import callback_problem
from moe_train.config.problem import Problem
from moe_train.config.registry import REGISTRY
from moe_train.config.schema import (
    Recipe,
    expert_width,
    experts_of_layers,
    has_causal_moe,
    head_width,
    moe_layers,
    stacks,
    with_equal_layers,
)
from moe_train.errors import LayoutError, RecipeError

AT_LEAST_ONE = (
    "steps",
    "log_every",
    "model.num_layers",
    "model.d_model",
    "model.num_heads",
    "moe.group_sequences",
    "data.sequence_length",
    "data.global_batch",
    "data.validation_sequences",
    "decoding.beam_size",
    "parallel.expert",
)
AT_LEAST_ZERO = (
    "seed",
    "validate_every",
    "moe.min_capacity",
    "moe.shared_experts",
    "decoding.length_penalty",
    "decoding.sentences",
    "checkpoint.every",
    "checkpoint.keep_last",
)
POSITIVE_OR_NULL = (
    "model.num_encoder_layers",
    "model.head_width",
    "model.d_ff",
    "moe.d_ff",
    "moe.capacity_factor",
    "moe.eval_capacity_factor",
    "data.micro_batch",
    "parallel.data",
    "checkpoint.keep_every",
    "job.threads",
    "job.timeout_s",
)

LONGEST_NAME_BYTES = 200
"""Less than the 255 that file systems allow: a run that is moved aside gets a longer name."""
MOST_THREADS = 1024
"""More than any machine has cores, and less than what a system refuses to start."""
SHORTEST_HANG_S = 5.0
SHOWN_DIVISORS = 12
LARGEST_DIVISOR_TRIED = 1_000_000


def problems(recipe: Recipe, workers: int | None = None) -> list[Problem]:
    """All that keeps `recipe` from running (on `workers` workers, if that is known)."""
    found = list(_not_finite(recipe)) or [
        *_ranges(recipe),
        *_empty_text(recipe),
        *recipe.monitor.wandb.check(recipe.name),
        *_model(recipe),
        *_corpus(recipe),
        *_kinds(recipe),
        *_callbacks(recipe),
    ]
    return found or [*_layout(recipe, workers), *_batch(recipe, workers), *recipe.stability.check(recipe)]


def require_sound(recipe: Recipe, workers: int | None = None) -> None:
    """Raise LayoutError or RecipeError with every problem found."""
    found = problems(recipe, workers)
    if found:
        layout_only = all(problem.key.startswith("parallel.") for problem in found)
        raise (LayoutError if layout_only else RecipeError)("\n".join(str(problem) for problem in found))


def _value(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _not_finite(section: object, prefix: str = "") -> Iterator[Problem]:
    """YAML knows .nan and .inf; no rule below sees that they are wrong, since a comparison with NaN is false."""
    for field in fields(section):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            yield from _not_finite(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield Problem(key, value, "must be a finite number", f"its default is {field.default}")


def _ranges(recipe: Recipe) -> Iterator[Problem]:
    for keys, lowest in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
        for key in keys:
            value = _value(recipe, key)
            if value is None or value < lowest:  # type: ignore[operator]
                yield Problem(key, value, f"must be at least {lowest}", f"set {key}={lowest} or more")
    for key in POSITIVE_OR_NULL:
        value = _value(recipe, key)
        if value is not None and value <= 0:  # type: ignore[operator]
            yield Problem(key, value, "must be above 0", f"set {key} to a positive number or to null")
    if not 0 < recipe.data.validation_fraction < 1:
        yield Problem(
            "data.validation_fraction", recipe.data.validation_fraction, "must be between 0 and 1", "use 0.05"
        )
    if not 0 <= recipe.model.dropout < 1:
        yield Problem("model.dropout", recipe.model.dropout, "must be in [0, 1)", "use 0 or 0.1")
    if not 0 <= recipe.moe.expert_dropout < 1:
        yield Problem(
            "moe.expert_dropout", recipe.moe.expert_dropout, "must be in [0, 1)", "Switch fine-tunes with 0.4"
        )
    if recipe.model.init_scale <= 0:
        yield Problem("model.init_scale", recipe.model.init_scale, "must be above 0", "Switch uses 0.1")
    threads = recipe.job.threads
    if threads is not None and threads > MOST_THREADS:
        yield Problem(
            "job.threads", threads, f"must be at most {MOST_THREADS}", "leave it out to use all cores"
        )
    if not SHORTEST_HANG_S <= recipe.job.hang_s <= recipe.job.timeout_s:
        yield Problem(
            "job.hang_s",
            recipe.job.hang_s,
            f"must be at least {SHORTEST_HANG_S:g}, as a worker tells every second where it is, and at most "
            f"job.timeout_s={recipe.job.timeout_s:g}, after which a collective fails without knowing who hangs",
            "its default is 60; raise job.timeout_s for longer ones",
        )
    if not _names_a_folder(recipe.name):
        yield Problem(
            "name", repr(recipe.name), "must be usable as a folder's name", "use letters, digits and dashes"
        )


def _empty_text(section: object, prefix: str = "") -> Iterator[Problem]:
    """What `key=$VARIABLE` leaves of a variable that is not set."""
    for field in fields(section):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            yield from _empty_text(value, f"{key}.")
        elif value == "" and field.default != "" and key != "name":
            default = "null" if field.default is None else field.default
            yield Problem(key, "''", "is empty", f"set it, or leave it out for its default, {default}")


def _names_a_folder(name: str) -> bool:
    short = 0 < len(name.encode()) <= LONGEST_NAME_BYTES
    return short and name.isprintable() and "/" not in name and not name.startswith(".")


def _model(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    if model.num_heads >= 1 and model.head_width is None and model.d_model % model.num_heads:
        yield Problem(
            "model.num_heads",
            model.num_heads,
            f"must divide model.d_model={model.d_model}",
            f"choose one of {_divisors(model.d_model)}, or say model.head_width",
        )
    elif model.num_heads >= 1 and model.positions == "rotary" and head_width(model) % 2:
        yield Problem(
            "model.num_heads" if model.head_width is None else "model.head_width",
            model.num_heads if model.head_width is None else model.head_width,
            f"leaves an odd head width {head_width(model)}, which rotary positions cannot halve",
            "choose a head count or model.head_width that gives an even width, or model.positions=learned",
        )
    if model.positions == "transformer_xl" and model.d_model % 2:
        yield Problem(
            "model.d_model",
            model.d_model,
            "must be even with model.positions=transformer_xl, for half of a sinusoid is sines and half cosines",
            "choose an even width, or model.positions=relative",
        )
    yield from _architecture(recipe)
    yield from placement_problems(recipe)


def _architecture(recipe: Recipe) -> Iterator[Problem]:
    """What goes with which stacks of layers."""
    architecture, objective = recipe.model.architecture, recipe.objective
    if architecture not in objective.architectures:
        trained = " or ".join(objective.architectures)
        yield Problem(
            "model.architecture",
            architecture,
            f"cannot be trained by objective.kind={objective.kind}, which is for {trained}",
            f"set model.architecture={objective.architectures[0]}, or choose another objective.kind",
        )
    if architecture != "encoder_decoder":
        for key, value, default in (
            ("model.num_encoder_layers", recipe.model.num_encoder_layers, None),
            ("moe.stacks", recipe.moe.stacks, "both"),
        ):
            if value != default:
                yield Problem(
                    key,
                    value,
                    f"is for model.architecture=encoder_decoder, and this is {architecture}",
                    f"leave {key} out",
                )


def _corpus(recipe: Recipe) -> Iterator[Problem]:
    """Pairs for those who translate, text for all others."""
    corpus, objective = recipe.data.corpus, recipe.objective
    if corpus.parallel and not objective.reads_pairs(recipe):
        yield Problem(
            "data.corpus.kind",
            corpus.kind,
            f"holds sentence pairs, which objective.kind={objective.kind} with "
            f"model.architecture={recipe.model.architecture} does not read",
            "set objective.kind=translation and model.architecture=encoder_decoder, or another corpus",
        )
    elif not corpus.parallel and objective.reads_pairs(recipe):
        yield Problem(
            "data.corpus.kind",
            corpus.kind,
            f"holds text, and objective.kind={objective.kind} with "
            f"model.architecture={recipe.model.architecture} reads sentence pairs",
            "use data.corpus.kind=parallel_debian, or parallel_files with a folder of your own",
        )


def _callbacks(recipe: Recipe) -> Iterator[Problem]:
    for name in dict.fromkeys(recipe.monitor.callbacks):
        if problem := callback_problem(name):
            yield problem


def _kinds(recipe: Recipe) -> Iterator[Problem]:
    equal = list(with_equal_layers(recipe))
    for place in REGISTRY:
        config = _value(recipe, place)
        assert isinstance(config, KindConfig)
        of_layers = equal if place.startswith("moe.") else [recipe]
        yield from {str(problem): problem for each in of_layers for problem in config.check(each)}.values()
    router = recipe.moe.router
    for stack in stacks(recipe):
        if stack.moe_layers:
            yield from router.check_stack(stack.name, stack.length)
    if router.sees_later_tokens and has_causal_moe(recipe):
        yield Problem(
            "moe.router.kind",
            router.kind,
            "lets later tokens decide what an earlier one gets, so a causal stack of layers "
            f"(model.architecture={recipe.model.architecture}) reads what it has to predict, and cannot generate",
            "use a router that looks at one token at a time, such as moe.router.kind=switch"
            + (", or moe.stacks=encoder" if recipe.model.architecture == "encoder_decoder" else ""),
        )


def _layout(recipe: Recipe, workers: int | None) -> Iterator[Problem]:
    parallel = recipe.parallel
    data = parallel.data or workers
    if workers is not None and parallel.data is not None and parallel.data != workers:
        yield Problem(
            "parallel.data",
            parallel.data,
            f"must equal the number of workers, which is {workers}",
            f"run with --workers {parallel.data} (a job has --nodes times --workers-per-node), or set "
            "parallel.data=null",
        )
        return
    if data is not None and data % parallel.expert:
        yield Problem(
            "parallel.expert",
            parallel.expert,
            f"must divide the number of workers, which is {data}",
            f"choose one of {_divisors(data)}, or run with --workers {parallel.expert} (a job has --nodes times "
            "--workers-per-node)",
        )
        return
    shared = math.gcd(*experts_of_layers(recipe))
    if shared % parallel.expert:
        each = "each of " if isinstance(recipe.moe.num_experts, list) else ""
        yield Problem(
            "parallel.expert",
            parallel.expert,
            f"must divide {each}moe.num_experts={recipe.moe.num_experts}",
            f"choose one of {_divisors(shared)}",
        )
    replicas = (data or 1) // parallel.expert
    for key, width in (("model.d_model", recipe.model.d_model), ("moe.d_ff", expert_width(recipe))):
        if moe_layers(recipe) and replicas > 1 and width % replicas:
            yield Problem(
                "parallel.expert",
                parallel.expert,
                f"leaves {replicas} workers to shard each expert's {key}={width}, which {replicas} does not divide",
                f"choose parallel.expert={data}, or a width that {replicas} divides",
            )


def _batch(recipe: Recipe, workers: int | None) -> Iterator[Problem]:
    data, batch = recipe.parallel.data or workers or 1, recipe.data.global_batch
    micro = recipe.data.micro_batch
    if batch % data:
        yield Problem(
            "data.global_batch",
            batch,
            f"must be a multiple of the {data} data-parallel workers",
            f"use {' or '.join(str(fit) for fit in (batch - batch % data, batch + data - batch % data) if fit)}",
        )
    elif micro is not None and (batch // data) % micro:
        yield Problem(
            "data.micro_batch",
            micro,
            f"must divide a worker's share of the batch, {batch} / {data} = {batch // data}",
            f"choose one of {_divisors(batch // data)}",
        )
    elif moe_layers(recipe) and (micro or batch // data) % recipe.moe.group_sequences:
        yield Problem(
            "moe.group_sequences",
            recipe.moe.group_sequences,
            f"must divide the {micro or batch // data} sequences of one forward pass",
            f"choose one of {_divisors(micro or batch // data)}",
        )
    yield from _validation(recipe, data)


def _validation(recipe: Recipe, data: int) -> Iterator[Problem]:
    group = recipe.moe.group_sequences if moe_layers(recipe) else 1
    if recipe.data.validation_sequences // group < data:
        yield Problem(
            "data.validation_sequences",
            recipe.data.validation_sequences,
            f"must be a group of {group} sequence{'s' * (group > 1)} (moe.group_sequences) at least for each of the "
            f"{data} data-parallel workers",
            f"use {group * data} or more",
        )


def _divisors(number: int) -> str:
    """The divisors of `number`, ascending; of many, the smallest."""
    candidates = range(1, min(number, LARGEST_DIVISOR_TRIED) + 1)
    found = [str(candidate) for candidate in candidates if number % candidate == 0]
    return ", ".join(found[:SHOWN_DIVISORS]) + (" or a larger one" if len(found) > SHOWN_DIVISORS else "")
