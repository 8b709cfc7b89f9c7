"""Lists the collectives of tensor parallelism: of each block, of embedding and logits, and of one update.

What the workers of a tensor group hold together is gathered or summed where a block begins or ends, forward and
backward. `distribute/tensor.py` makes them by DTensor, `parallel/share.py` those of MoE layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from moe_train.config.plan import ParallelPlan
from moe_train.config.spec import ModelSpec, MoESpec, StackSpec
from moe_train.layout.exchange import Exchange, Work
from moe_train.layout.held import FP32


@dataclass(frozen=True)
class Step:
    """Describes a collective of a forward pass or of a backward pass."""

    kind: str
    bytes: int
    is_forward: bool
    is_repeated: bool = False
    """It runs again in a backward pass that recomputes."""


@dataclass(frozen=True)
class TensorParallel:
    """Knows the sizes that collectives of a tensor group have."""

    spec: ModelSpec
    plan: ParallelPlan
    work: Work
    recompute: str
    to_its_end: bool
    """Recomputation runs a part to its last collective, not only to the last tensor that is needed."""
    overlaps: bool = False
    """Shared experts run before the outputs of the others are gathered, not after."""

    def exchanges(self) -> Iterator[Exchange]:
        """Yields the collectives of an update."""
        for stack in self.spec.stacks:
            for moe in stack.layers:
                what = "MoE layers" if moe else "dense blocks"
                yield from self._counted(self.of_block(stack, moe), what)
            yield from self._counted(self._embedding(stack), "embedding")
        yield from self._counted(self._logits(), "logits")
        # A pass that counts loads has no loss.
        learning = replace(self, work=replace(self.work, counting_passes=0))
        yield from learning._counted(self._loss(), "cross-entropy")
        if self.plan.sequence:
            size = FP32 * self._elements_of_partial_gradients()
            yield Exchange("all_reduce", "tensor", "gradients of norms", 1, size)

    def of_one(self, stack: StackSpec, moe: MoESpec | None) -> list[Exchange]:
        """Returns the collectives of a block, forward and backward apart."""
        steps = self.of_block(stack, moe)
        forward = self._counted([step for step in steps if step.is_forward], "forward")
        backward = self._counted([step for step in steps if not step.is_forward], "backward")
        return [*forward, *backward]

    def of_block(self, stack: StackSpec, moe: MoESpec | None) -> list[Step]:
        """Returns the collectives of a block for a microbatch, those of its experts' rows aside."""
        tokens = self._tokens(stack)
        is_whole, is_attention = self.recompute == "block", self.recompute in ("attention", "block")
        reads = stack.reads_encoder
        last = self.to_its_end
        steps = self._half(tokens, begins_again=is_attention, ends_again=is_whole or last or reads)
        if reads:
            steps += self._half(tokens, begins_again=is_attention, ends_again=is_whole or last)
            steps += self._memory(self._tokens(self.spec.stacks[0]), is_again=is_attention)
        if moe is None:
            return [*steps, *self._half(tokens, begins_again=is_whole, ends_again=is_whole and last)]
        steps += self._experts(tokens, moe)
        if moe.shared_experts:
            is_again = self.recompute in ("experts", "block")
            steps += self._half(
                tokens, begins_again=is_again, ends_again=is_again and (last or self.overlaps)
            )
        return steps

    def _half(self, tokens: int, *, begins_again: bool, ends_again: bool) -> list[Step]:
        """Returns what encloses matrices that are cut by columns and then by rows; gradients are fp32."""
        whole, rounded = (tokens * self.spec.d_model * size for size in (FP32, self._size))
        if not self.plan.sequence:
            return [
                Step("all_reduce", rounded, True, begins_again and ends_again),
                Step("all_reduce", whole, False),
            ]
        return [
            Step("all_gather", whole, True, begins_again),
            Step("reduce_scatter", rounded, True, begins_again and ends_again),
            Step("all_gather", rounded, False),
            Step("reduce_scatter", whole, False),
        ]

    def _memory(self, tokens: int, *, is_again: bool) -> list[Step]:
        """Returns those for the encoder's output, which cross-attention reads."""
        size = FP32 * tokens * self.spec.d_model
        if not self.plan.sequence:
            return [Step("all_reduce", size, False)]
        return [Step("all_gather", size, True, is_again), Step("reduce_scatter", size, False)]

    def _experts(self, tokens: int, moe: MoESpec) -> list[Step]:
        """Returns those of an MoE layer, whose tokens the workers of a group share out."""
        weights = Step("all_gather", FP32 * tokens * moe.router.num_choices, False)
        whole, rounded = (tokens * self.spec.d_model * size for size in (FP32, self._size))
        if self.plan.sequence:
            return [Step("all_gather", whole, True, self.recompute == "block"), weights]
        is_last = self.overlaps or not (self.recompute == "block" and moe.shared_experts)
        is_again = self.recompute in ("experts", "block") and (self.to_its_end or not is_last)
        return [
            Step("all_gather", rounded, True, is_again),
            Step("all_gather", rounded, False),
            weights,
        ]

    def _embedding(self, stack: StackSpec) -> list[Step]:
        size = FP32 * self._tokens(stack) * self.spec.d_model
        if not self.plan.sequence:
            return [Step("all_reduce", size, True)]
        return [Step("reduce_scatter", size, True), Step("all_gather", size, False)]

    def _logits(self) -> list[Step]:
        size = FP32 * self._tokens(self.spec.stacks[-1]) * self.spec.d_model
        if not self.plan.sequence:
            return [Step("all_reduce", size, False)]
        return [Step("all_gather", size, True), Step("reduce_scatter", size, False)]

    def _loss(self) -> list[Step]:
        """Returns a maximum and two sums for each token: of a plain cross-entropy."""
        tokens = self._tokens(self.spec.stacks[-1])
        return [Step("all_reduce", FP32 * tokens, True), Step("all_reduce", 2 * FP32 * tokens, True)]

    def _counted(self, steps: list[Step], what: str) -> Iterator[Exchange]:
        for step in steps:
            number = self.work.backward_passes * (1 + step.is_repeated)
            if step.is_forward:
                number += self.work.counting_passes
            yield Exchange(step.kind, "tensor", what, number, number * step.bytes)

    def _elements_of_partial_gradients(self) -> int:
        """Returns the elements here of norms and learned positions, whose gradients are sums over the group."""
        elements, shards = 0, self.plan.data_shards
        for stack in self.spec.stacks:
            norms = stack.num_layers * (3 if stack.reads_encoder else 2) + 1
            positions = stack.length if self.spec.positions == "learned" else 0
            elements += norms * -(-self.spec.d_model // shards) + -(-positions // shards) * self.spec.d_model
        return elements

    def _tokens(self, stack: StackSpec) -> int:
        return self.work.sequences * stack.length

    @property
    def _size(self) -> int:
        """Returns the bytes of a number that a matrix product makes."""
        return 2 if self.work.is_bf16 else FP32
