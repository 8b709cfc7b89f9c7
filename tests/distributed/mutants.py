"""Deliberate errors of distributed training, each of which some comparison of the matrix must find.

An error is a function that patches the product in a worker, and the values of the matrix with which it shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from matrix import AXES, Choice
from torch import Tensor

from moe_train.config.plan import ParallelPlan
from moe_train.distribute import apply
from moe_train.engines import deepspeed, native
from moe_train.engines.native import NativeEngine
from moe_train.model.attention import Attention
from moe_train.model.logits import VocabularyPart
from moe_train.moe.dispatch import overlap
from moe_train.moe.experts import Experts
from moe_train.moe.recompute import Decision
from moe_train.moe.rows import Rows
from moe_train.parallel import share
from moe_train.parallel.axis import Axis
from moe_train.random import RandomStream
from moe_train.step import losses
from moe_train.step.training_step import TrainingStep

Patch = pytest.MonkeyPatch
PLAIN = {axis: next(iter(values)) for axis, values in AXES.items()} | {"workers": "2"}


@dataclass(frozen=True)
class Mutant:
    """An error."""

    make: Callable[[Patch], None]
    choice: Choice
    found_by: str
    """What the comparison says, as a regular expression."""


def copies_counted_in_the_norm(patch: Patch) -> None:
    _reduce_with(patch, is_owner=lambda shard: True)


def experts_left_out_of_the_norm(patch: Patch) -> None:
    _reduce_with(patch, is_owner=lambda shard: shard.is_owner and not shard.is_expert)


def _reduce_with(patch: Patch, is_owner: Callable) -> None:
    sound = NativeEngine.reduce

    def reduce(self, values):
        shards = self.shards
        self.shards = {name: replace(shard, is_owner=is_owner(shard)) for name, shard in shards.items()}
        try:
            return sound(self, values)
        finally:
            self.shards = shards

    patch.setattr(NativeEngine, "reduce", reduce)


def norm_of_each_rank_alone(patch: Patch) -> None:
    sound = NativeEngine.reduce

    def reduce(self, values):
        mesh = self.mesh
        self.mesh = replace(mesh, world=replace(mesh.world, rank=0, size=1))
        norm, _ = sound(self, values)
        self.mesh = mesh
        return norm, sound(self, values)[1]

    patch.setattr(NativeEngine, "reduce", reduce)


def experts_summed_for_averaged(patch: Patch) -> None:
    patch.setattr(ParallelPlan, "expert_gradient_factor", property(lambda plan: 1.0))


def experts_averaged_twice_in_deepspeed(patch: Patch) -> None:
    sound = apply.apply_expert
    patch.setattr(apply, "apply_expert", lambda model, mesh, factor: sound(model, mesh, 1 / mesh.expert.size))


def copies_of_tensor_ranks_owned_twice_in_deepspeed(patch: Patch) -> None:
    patch.setattr(deepspeed.DeepSpeedEngine, "_is_owned_by_tensor_rank", lambda self, shard: True)


def norms_of_a_part_not_summed_in_deepspeed(patch: Patch) -> None:
    patch.setattr(deepspeed, "partial_gradients", lambda model: [])


def experts_of_tensor_ranks_not_summed_in_deepspeed(patch: Patch) -> None:
    """Experts that both ranks hold are left as the rank's own tokens make them."""
    from moe_train.engines import deepspeed_runtime  # imports DeepSpeed, which the sound run has done by now

    patch.setattr(deepspeed_runtime, "_group", lambda axis, alone: alone)


def routing_made_anew_in_recompute(patch: Patch) -> None:
    """Two edges trade their tokens when a block runs again, as ties do that fall the other way."""
    sound = Decision.once

    def once(self, decide, x, *arguments):
        is_again = bool(self._answers)
        routing, stats = sound(self, decide, x, *arguments)
        return (replace(routing, token_ids=routing.token_ids.flip(0)) if is_again else routing), stats

    patch.setattr(Decision, "once", once)


def last_microbatch_alone(patch: Patch) -> None:
    sound = NativeEngine.backward
    patch.setattr(
        NativeEngine,
        "backward",
        lambda self, loss, is_last: sound(self, loss if is_last else 0 * loss, is_last),
    )


def microbatches_summed_for_averaged(patch: Patch) -> None:
    sound = losses.LossPasses.run

    def run(self, batches, step, backward, controls):
        return sound(
            self, batches, step, lambda loss, is_last: backward(loss * len(batches), is_last), controls
        )

    patch.setattr(losses.LossPasses, "run", run)


def experts_at_the_offset_of_the_first_rank(patch: Patch) -> None:
    sound = NativeEngine.state

    def state(self):
        return {
            name: [replace(box, offsets=(0, *box.offsets[1:])) if box.is_expert else box for box in boxes]
            for name, boxes in sound(self).items()
        }

    patch.setattr(NativeEngine, "state", state)


def draws_by_place_in_the_share(patch: Patch) -> None:
    sound = RandomStream.uniform

    def uniform(self, site: str, sequence_ids: Tensor, *shape: int) -> Tensor:
        return sound(self, site, torch.arange(len(sequence_ids)), *shape)

    patch.setattr(RandomStream, "uniform", uniform)


def balance_of_the_share_for_the_batch(patch: Patch) -> None:
    sound = losses.batch_sums
    patch.setattr(losses, "batch_sums", lambda data, stats, num_passes: sound(Axis(), stats, num_passes))


def gradient_summed_over_tensor_ranks_twice(patch: Patch) -> None:
    sound = share._Split.backward

    def backward(ctx, grad):
        rows, nothing = sound(ctx, grad)
        return ctx.axis.sum(rows), nothing

    patch.setattr(share._Split, "backward", staticmethod(backward))


def gradient_of_own_tokens_alone(patch: Patch) -> None:
    """As in pytorch/torchtitan#2387: every rank's router learns from its share of the tokens, and they drift apart."""

    def backward(ctx, grad):
        rows = grad.new_zeros(ctx.num_rows, *grad.shape[1:])
        first, last = share.bounds(ctx.num_rows, ctx.axis)
        rows[first:last] = grad
        return rows, None

    patch.setattr(share._Split, "backward", staticmethod(backward))


def heads_counted_whole(patch: Patch) -> None:
    """A rank with half of the heads cuts its part into as many heads as there are in all."""
    sound = apply.apply_tensor

    def apply_tensor(model, mesh):
        sound(model, mesh)
        for module in model.modules():
            if isinstance(module, Attention):
                module.head_width //= mesh.tensor.size

    patch.setattr(apply, "apply_tensor", apply_tensor)


def expert_gradients_off_by_tensor(patch: Patch) -> None:
    sound = ParallelPlan.expert_gradient_factor.fget
    patch.setattr(ParallelPlan, "expert_gradient_factor", property(lambda plan: sound(plan) / plan.tensor))


def loss_counted_by_each_tensor_rank(patch: Patch) -> None:
    sound = TrainingStep.__init__

    def init(self, recipe, mesh, engine):
        sound(self, recipe, mesh, engine)
        self.mesh = replace(mesh, tensor=Axis())

    patch.setattr(TrainingStep, "__init__", init)


def auxiliary_losses_times_tensor(patch: Patch) -> None:
    sound = losses._auxiliary
    patch.setattr(losses, "_auxiliary", lambda *arguments: 2 * sound(*arguments))


def padding_of_the_vocabulary_counted(patch: Patch) -> None:
    patch.setattr(VocabularyPart, "count", property(lambda part: part.rows))


def positions_of_a_part_from_zero(patch: Patch) -> None:
    sound = Rows.part
    patch.setattr(Rows, "part", lambda *arguments: replace(sound(*arguments), first=0))


def norms_of_a_part_not_summed(patch: Patch) -> None:
    patch.setattr(native, "partial_gradients", lambda model: [])


def other_values_on_one_rank(patch: Patch) -> None:
    """A weight that all ranks hold whole is updated on one of them alone."""
    sound = NativeEngine.update

    def update(self, lr, norm):
        sound(self, lr, norm)
        if self.mesh.world.rank == 1:
            self.locals["norm.weight"].mul_(1.0001)

    patch.setattr(NativeEngine, "update", update)


def halves_swapped(patch: Patch) -> None:
    """The outputs of the second half of the tokens come first."""
    sound = overlap._combined
    patch.setattr(overlap, "_combined", lambda *parts: (y := sound(*parts)).roll(len(y) // 2, 0))


def gradient_of_the_second_half_forgotten(patch: Patch) -> None:
    sound = Experts.in_two

    def in_two(self, *arguments):
        returning, results = sound(self, *arguments)
        return returning, results.detach()

    patch.setattr(Experts, "in_two", in_two)


def of(make: Callable[[Patch], None], found_by: str, **values: str) -> tuple[str, Mutant]:
    return make.__name__, Mutant(make, PLAIN | values, found_by)


MUTANTS = dict(
    [
        of(copies_counted_in_the_norm, "norm of the first step", sharding="copies"),
        of(experts_left_out_of_the_norm, "norm of the first step"),
        of(norm_of_each_rank_alone, "norm of the first step"),
        of(experts_summed_for_averaged, "experts.w_in: differs by"),
        of(experts_averaged_twice_in_deepspeed, "experts.w_in: differs by", engine="stage 1"),
        of(
            copies_of_tensor_ranks_owned_twice_in_deepspeed,
            "owned by no rank or by several",
            engine="stage 2",
            tensor="2",
        ),
        of(
            norms_of_a_part_not_summed_in_deepspeed,
            "norm.weight: rank 1 holds another copy",
            engine="stage 1",
            tensor="2",
            sequence="true",
        ),
        of(
            experts_of_tensor_ranks_not_summed_in_deepspeed,
            "experts.w_in: rank 1 holds another copy",
            engine="stage 0",
            tensor="2",
            expert="1",
        ),
        of(routing_made_anew_in_recompute, "differs by", recompute="block"),
        of(last_microbatch_alone, "differs by", micro_batch="1"),
        of(microbatches_summed_for_averaged, "differs by", micro_batch="1"),
        of(experts_at_the_offset_of_the_first_rank, "owned by no rank or by several"),
        of(draws_by_place_in_the_share, "differs by"),
        of(balance_of_the_share_for_the_batch, "differs by", router="balance of the batch"),
        of(gradient_summed_over_tensor_ranks_twice, "differs by", tensor="2"),
        of(gradient_of_own_tokens_alone, "holds another copy", tensor="2"),
        of(heads_counted_whole, "differs by", tensor="2"),
        of(expert_gradients_off_by_tensor, "experts.w_in: differs by", tensor="2"),
        of(loss_counted_by_each_tensor_rank, "reported", tensor="2"),
        of(auxiliary_losses_times_tensor, "differs by", tensor="2"),
        of(
            padding_of_the_vocabulary_counted,
            "differs by",
            tensor="2",
            parts="odd vocabulary, every second layer",
        ),
        of(positions_of_a_part_from_zero, "differs by", tensor="2", sequence="true", positions="learned"),
        of(norms_of_a_part_not_summed, "norm.weight: rank 1 holds another copy", tensor="2", sequence="true"),
        of(halves_swapped, "differs by", overlap="halves"),
        of(gradient_of_the_second_half_forgotten, "differs by", overlap="halves"),
        of(other_values_on_one_rank, "norm.weight: rank 1 holds another copy", sharding="copies"),
    ]
)
