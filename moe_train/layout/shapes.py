"""Lists the parameters of a model by the unit that gathers and reduces them together, and by the part they belong to.

A unit is a block, the experts of a block, or what stands around the blocks. Shapes are those of the whole model; how a
rank's part follows from them is in `held.py`. `model/count.py` counts the same parameters, part by part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from moe_train.config.spec import GATED, ModelSpec, MoESpec, StackSpec
from moe_train.model.count import RELATIVE_BUCKETS


@dataclass(frozen=True)
class Parameter:
    """Describes a parameter of the whole model."""

    part: str
    """A part of `model/count.py`."""
    shape: tuple[int, ...]
    tensor_dim: int | None = None
    """The dimension along which the workers of a tensor group share it; None: each has all."""
    read_in_bf16_by: str = ""
    """The part of a block in which products in bf16 alone read it, where these are; empty: it is read in fp32."""


@dataclass(frozen=True)
class Unit:
    """Holds the parameters that are gathered and reduced together."""

    name: str
    parameters: tuple[Parameter, ...]
    is_experts: bool = False
    is_around: bool = False
    """It stands around the blocks, and stays gathered until the backward pass is over."""


def units(spec: ModelSpec) -> list[Unit]:
    """Returns the units of a model: block by block, then what stands around the blocks."""
    found = [unit for stack in spec.stacks for unit in _blocks(spec, stack)]
    around = [Parameter("embedding", (spec.vocabulary_size, spec.d_model), 0)]
    if not spec.tied_embeddings:
        around.append(Parameter("head", (spec.vocabulary_size, spec.d_model), 0))
    for stack in spec.stacks:
        around.append(Parameter("norms", (spec.d_model,)))
        if spec.positions == "learned":
            around.append(Parameter("positions", (stack.length, spec.d_model)))
        if spec.positions == "relative":
            around.append(Parameter("positions", (RELATIVE_BUCKETS, spec.num_heads)))
    return [*found, Unit("around the blocks", tuple(around), is_around=True)]


def _blocks(spec: ModelSpec, stack: StackSpec) -> Iterator[Unit]:
    """Yields each block of a stack and, before it, its experts."""
    for index, moe in enumerate(stack.layers):
        name = f"{stack.name} block {index}"
        if moe is not None:
            yield Unit(f"{name}, experts", tuple(_experts(moe)), is_experts=True)
        yield Unit(name, tuple(_block(spec, stack, moe)))


def _block(spec: ModelSpec, stack: StackSpec, moe: MoESpec | None) -> Iterator[Parameter]:
    yield from _attention(spec, "attention", spec.positions == "transformer_xl")
    if stack.reads_encoder:
        yield from _attention(spec, "cross_attention", False)
    for _ in range(3 if stack.reads_encoder else 2):
        yield Parameter("norms", (spec.d_model,))
    if moe is None:
        yield from _feed_forward("feed_forward", spec.activation, spec.d_model, spec.d_ff)
        return
    if number := moe.router.num_parameters(moe.d_model, moe.num_experts):
        outputs, rest = divmod(number, moe.d_model)
        yield Parameter("router", (moe.d_model, outputs))
        if rest:
            yield Parameter("router", (rest,))
    if moe.shared_experts:
        yield from _feed_forward("shared_experts", moe.activation, moe.d_model, moe.shared_width)


def _attention(spec: ModelSpec, module: str, has_distances: bool) -> Iterator[Parameter]:
    for _ in range(3):
        yield Parameter("attention", (spec.attention_width, spec.d_model), 0, module)
    yield Parameter("attention", (spec.d_model, spec.attention_width), 1, module)
    if has_distances:
        yield Parameter("positions", (spec.attention_width, spec.d_model), 0, module)
        for _ in range(2):
            yield Parameter("positions", (spec.attention_width,), 0, module)


def _feed_forward(part: str, activation: str, width: int, hidden: int) -> Iterator[Parameter]:
    for _ in range(2 if activation in GATED else 1):
        yield Parameter(part, (hidden, width), 0, part)
    yield Parameter(part, (width, hidden), 1, part)


def _experts(moe: MoESpec) -> Iterator[Parameter]:
    part = "experts" if moe.router.sends_rows else ""
    for _ in range(2 if moe.activation in GATED else 1):
        yield Parameter("experts", (moe.num_experts, moe.d_model, moe.d_ff), 2, part)
    yield Parameter("experts", (moe.num_experts, moe.d_ff, moe.d_model), 1, part)
