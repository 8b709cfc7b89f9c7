"""One MoE layer on several ranks that divide its tokens and cut its experts, against the same layer on one rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tiny_model import context, moe_layer, normal, tiny_recipe, vocabulary, with_padding
from torch import Tensor, nn

from moe_train.checkpoint.checksum import expert_checksums
from moe_train.checkpoint.manifest import CHECKSUM_MASK
from moe_train.config.layout import plan_of
from moe_train.config.plan import ParallelPlan
from moe_train.config.schema import Recipe
from moe_train.distribute.expert import apply_expert
from moe_train.distribute.shards import parameter_shards
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.policy import rewarded
from moe_train.moe.routing import RouteContext, Routing, TableRouter
from moe_train.moe.token_numbers import packed, token_numbers, unpack
from moe_train.parallel.axis import Axis
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.random import generator_for
from moe_train.results import MoEStats

SEQUENCES, LENGTH, WIDTH = 4, 9, 32
"""Nine tokens of a sequence, of which no number of sequences that a rank has makes a multiple of every degree."""


@dataclass(frozen=True)
class Case:
    """A layer, and the degrees by which ranks share it."""

    name: str
    overrides: tuple[str, ...]
    layout: tuple[str, ...]


@dataclass
class Seen:
    """Holds the results of a forward and a backward pass."""

    y: Tensor
    x_gradient: Tensor
    gradients: dict[str, Tensor]
    stats: MoEStats


def compare_all(world: World, cases: Sequence[Case], digits: float) -> int:
    """Compares every case with one rank; returns how many. Raises AssertionError with the case's name."""
    meshes: dict[ParallelPlan, Mesh] = {}
    for case in cases:
        recipe = tiny_recipe(*case.overrides, *case.layout)
        plan = plan_of(recipe.parallel, world.size)
        if plan not in meshes:
            meshes[plan] = Mesh.build(plan, world)
        try:
            _compare(case, recipe, meshes[plan], digits)
        except Exception as problem:
            raise AssertionError(f"{case.name} with {' '.join(case.layout)}: {problem}") from problem
    return len(cases)


def _compare(case: Case, recipe: Recipe, mesh: Mesh, digits: float) -> None:
    whole, layer = _layer(recipe), _layer(recipe)
    expected = _run(whole, _context(0, SEQUENCES, "is_padded" in case.name))
    share = SEQUENCES // mesh.data.size
    here = _context(mesh.data.rank * share, share, "is_padded" in case.name)
    weights = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    boxes = _cut(layer, mesh, weights)
    seen = _run(layer, here)
    mine = slice(mesh.data.rank * share * LENGTH, (mesh.data.rank + 1) * share * LENGTH)
    _equal("y", seen.y, expected.y[mine], digits)
    _equal("gradient of x", seen.x_gradient, expected.x_gradient[mine], digits)
    for name, gradient in seen.gradients.items():
        if name in boxes:
            total = mesh.replica.sum(gradient.clone()) / mesh.replica.size
            _equal(name, total * mesh.data.size, boxes[name](expected.gradients[name]), digits)
        else:
            _same_on(mesh.tensor, name, gradient)
            _equal(name, mesh.data.sum(gradient.clone()), expected.gradients[name], digits)
    for name, count in seen.stats.counts.items():
        _same_on(mesh.tensor, name, count)
        _equal(name, mesh.data.sum(count.clone()), expected.stats.counts[name], digits)
    for name, loss in seen.stats.losses.items():
        _same_on(mesh.tensor, name, loss.detach())
    _no_token_twice(layer, whole, mesh, here)
    _same_checksums(mesh.world, boxes, weights)


def _layer(recipe: Recipe) -> MoELayer:
    layer = moe_layer(recipe)
    if isinstance(layer.router, TableRouter):
        layer.router.table = layer.router.make_table(vocabulary(recipe), generator_for(0, "table"))
    return layer


def _context(first: int, sequences: int, is_padded: bool) -> RouteContext:
    here = context(sequences, LENGTH, training=True, first=first)
    if not is_padded:
        return here
    lengths = torch.tensor([LENGTH, 5, 0, 7])[first : first + sequences]
    return with_padding(here, torch.arange(LENGTH) < lengths.unsqueeze(1))


def _run(layer: MoELayer, here: RouteContext) -> Seen:
    """A pass over the sequences of `here`, whose loss is a sum over their tokens and depends on all outputs alike."""
    ids = here.rows.sequence_ids
    rows = slice(int(ids[0]) * LENGTH, (int(ids[-1]) + 1) * LENGTH)
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=50)[rows].requires_grad_()
    y, stats = layer(x, here)
    policy = rewarded(stats, normal(SEQUENCES * LENGTH, seed=51)[rows])
    names = ("policy", "value") if stats.policy is not None else ()
    # Losses of the whole batch are not sums over ranks: moe/whole_batch.py makes them so, and has tests of its own.
    auxiliary = [loss for name, loss in stats.losses.items() if name not in stats.batch_losses]
    auxiliary += [policy.losses[name] for name in names]
    total = (y * normal(SEQUENCES * LENGTH, WIDTH, seed=52)[rows]).sum()
    total = total + len(ids) * sum(auxiliary, torch.zeros(()))
    total.backward()
    return Seen(y.detach(), x.grad, {name: p.grad.clone() for name, p in layer.named_parameters()}, stats)


def _cut(layer: MoELayer, mesh: Mesh, weights: dict[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Leaves this rank's part of the layer; returns what cuts its box out of the whole of each expert weight."""
    holder = nn.ModuleDict({"layer": layer})
    shapes = {name: parameter.shape for name, parameter in holder.named_parameters()}
    apply_expert(holder, mesh)
    layer.experts.to_empty(device="cpu")
    boxes = {}
    for full_name, shard in parameter_shards(holder, mesh, shapes).items():
        name = full_name.removeprefix("layer.")
        if shard.is_expert:
            place = tuple(
                slice(start, start + size)
                for start, size in zip(shard.offsets, shard.data.shape, strict=True)
            )
            boxes[name] = lambda tensor, place=place: tensor[place]
            boxes[name].offsets = shard.offsets
            shard.data.copy_(weights[name][place])
            assert shard.global_shape == tuple(weights[name].shape)
    return boxes


def _no_token_twice(layer: MoELayer, whole: MoELayer, mesh: Mesh, here: RouteContext) -> None:
    """Sends each token's number along its edges and counts, over all workers, what has reached each slice."""
    x = normal(SEQUENCES * LENGTH, WIDTH, seed=50)
    with torch.no_grad():
        wanted, _ = whole.route(x, _context(0, SEQUENCES, here.rows.is_real is not None))
        ids = here.rows.sequence_ids
        rows = slice(int(ids[0]) * LENGTH, (int(ids[-1]) + 1) * LENGTH)
        decision, _ = layer.route(x[rows], here)
    if not isinstance(wanted, Routing):
        return
    with torch.no_grad():
        arrived = layer.dispatcher.dispatch(packed(token_numbers(here.rows)), decision)
    held = len(arrived.counts)
    first = mesh.expert.rank * held
    experts = torch.arange(first, first + held).repeat_interleave(torch.tensor(arrived.counts))
    pairs = list(zip(experts.tolist(), unpack(arrived.rows).tolist(), strict=True))
    everywhere = mesh.world.gather((mesh.expert_tensor.rank, pairs))
    for part in range(mesh.expert_tensor.size):
        of_part = sorted(pair for rank, pairs in everywhere if rank == part for pair in pairs)
        assert of_part == sorted(zip(wanted.expert_ids.tolist(), wanted.token_ids.tolist(), strict=True))


def _same_checksums(
    world: World, boxes: dict[str, Callable[[Tensor], Tensor]], weights: dict[str, Tensor]
) -> None:
    """Checksums of the experts, which are sums over their boxes, are those of whole experts, whoever holds them."""
    for name, box in boxes.items():
        mine = box(weights[name])
        sums = dict(enumerate(expert_checksums(mine, box.offsets), start=box.offsets[0]))
        everywhere = world.gather((box.offsets, sums))
        distinct = dict(everywhere)
        whole = expert_checksums(weights[name], (0, 0, 0))
        totals = [0] * len(whole)
        for of_box in distinct.values():
            for expert, value in of_box.items():
                totals[expert] = (totals[expert] + value) & CHECKSUM_MASK
        assert totals == whole, name


def _same_on(axis: Axis, name: str, value: Tensor) -> None:
    """The same bits on every worker of the axis."""
    if axis.size > 1:
        others = [torch.empty_like(value) for _ in range(axis.size)]
        torch.distributed.all_gather(others, value.contiguous(), group=axis.group)
        assert all(torch.equal(value, other) for other in others), f"{name} differs between tensor ranks"


def _equal(name: str, got: Tensor, wanted: Tensor, digits: float) -> None:
    assert got.shape == wanted.shape, (name, got.shape, wanted.shape)
    largest = wanted.abs().max() if wanted.numel() else 0
    difference = (got - wanted).abs().max() if wanted.numel() else 0
    assert difference <= digits * largest, f"{name}: differs by {difference:.1e} of {largest:.1e}"
