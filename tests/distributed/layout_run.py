"""A short training run on one layout, and what must be the same on every other one."""

from dataclasses import dataclass, replace
from unittest import mock

import torch
from balanced_routers import padded
from tiny_model import global_batch, share_of, tiny_recipe, vocabulary
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_train.checkpoint.layout import Shard
from moe_train.config.layout import plan_of
from moe_train.config.schema import Recipe
from moe_train.engines.engine import Engine
from moe_train.engines.native import NativeEngine
from moe_train.monitor import similarity
from moe_train.parallel.axis import Axis
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.results import MoEStats, counts_of_layers
from moe_train.step.training_step import TrainingStep

STEPS = 5


@dataclass
class Box:
    """A rank's part of a global tensor."""

    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    data: Tensor
    is_expert: bool
    is_owner: bool


@dataclass
class LayoutRun:
    """What one rank saw; the lists have an entry for each step and hold global values."""

    losses: list[float]
    auxiliary: list[dict[str, float]]
    norms: list[float]
    loads: list[Tensor]
    dropped: list[Tensor]
    entropies: list[Tensor]
    top_probabilities: list[Tensor]
    validation: float
    gradients: dict[str, Box]
    """Of the first step in which a parameter has one (`step_of`), before clipping."""
    parameters: dict[str, Box]
    """After the last step."""
    allocated: dict[str, int]
    """Bytes of storage behind each local parameter."""
    reported: list[float]
    """The mean losses that the update itself has summed up."""
    state: dict[str, list[Box]]
    """All that a checkpoint of the end would have: parameters, buffers and the optimizer's state."""
    shown: dict[str, list]
    """What a row shows of `gradients`."""
    unrounded: "LayoutRun | None" = None
    """The same run in fp32, where this one is of bf16 and the difference matters."""


class WholeExpertsWatch(TorchDispatchMode):
    """Notes the shape of every stored tensor that holds all experts of a layer of the tiny model."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.device.type != "meta" and tensor.ndim == 3:
                shape = tuple(tensor.shape)
                if shape in {(8, 32, 40), (8, 40, 32)}:
                    self.seen.add(shape)
        return out


def tiny_step(world: World, *overrides: str) -> tuple[Recipe, TrainingStep]:
    """The training step of the tiny model on this rank."""
    recipe = tiny_recipe(*overrides)
    mesh = Mesh.build(plan_of(recipe.parallel, world.size), world)
    return recipe, TrainingStep.build(recipe, mesh, vocabulary(recipe))


def train_under_watch(world: World, *overrides: str) -> tuple["LayoutRun", list[tuple[int, ...]]]:
    """A run, and the shapes of all experts that were stored on this rank from the first line on."""
    with WholeExpertsWatch() as watch:
        run = train(world, *overrides)
    return run, sorted(watch.seen)


def losses_around_a_load(world: World, *overrides: str) -> tuple[float, float]:
    """Validation loss before and after zeros are written into every local parameter, as loading would."""
    recipe, training_step = tiny_step(world, *overrides)
    data = training_step.mesh.data
    batches = share_of(global_batch(recipe, 0), data.rank, data.size)
    before = training_step.evaluate(batches, 0)
    for shard in training_step.engine.shards.values():
        shard.data.zero_()
    return before, training_step.evaluate(batches, 1)


def step_of(router: str, name: str) -> int:
    """The first step in which a parameter has a gradient: `base`'s experts begin at 0, by their last matrices."""
    waiting = (".router.", ".feedforward_norm.", ".experts.w_in", ".experts.w_gate")
    return int(router == "base" and any(part in name for part in waiting))


def train(world: World, *overrides: str) -> LayoutRun:
    """Five updates of the tiny model and one validation pass."""
    recipe, training_step = tiny_step(world, *overrides)
    engine, data = training_step.engine, training_step.mesh.data
    gradients: dict[str, Box] = {}
    router = recipe.moe.router.kind

    update = engine.update

    def take(lr: float, norm: float) -> None:
        if step <= step_of(router, ".router."):
            seen = boxes(engine, gradients_of(engine))
            gradients.update({name: box for name, box in seen.items() if step_of(router, name) == step})
        update(lr, norm)

    engine.update = take
    run = LayoutRun([], [], [], [], [], [], [], 0.0, gradients, {}, {}, [], {}, {})
    for step in range(STEPS):
        batches = share_of(global_batch(recipe, step), data.rank, data.size, recipe.data.micro_batch)
        is_shown = step == step_of(router, ".router.")
        result = training_step.update(batches, step, False, detail="full" if is_shown else "off")
        run.shown |= result.gradients
        if is_shown:
            with mock.patch.object(similarity, "AT_ONCE", 1000):  # never all experts at a time
                similar = training_step.similarity()
            run.shown |= {key: values for key, values in similar.items() if key == "expert_similarity"}
        run.losses.append(mean(data, result.loss))
        run.reported.append(result.mean_loss)
        run.auxiliary.append({name: mean(data, loss) for name, loss in result.losses.items()})
        run.norms.append(result.grad_norm)
        run.loads.append(data.sum(over_microbatches(result.stats, "load")))
        run.dropped.append(data.sum(over_microbatches(result.stats, "dropped")))
        run.entropies.append(data.sum(over_microbatches(result.stats, "router_entropy")))
        run.top_probabilities.append(data.sum(over_microbatches(result.stats, "router_top_probability")))
    validation = global_batch(recipe, 99)
    share = share_of(validation, data.rank, data.size, recipe.data.micro_batch)
    run.validation = training_step.evaluate(share, STEPS)
    run.parameters = boxes(engine, {name: shard.data for name, shard in engine.shards.items()})
    run.state = {name: [_box(shard) for shard in held] for name, held in engine.state().items()}
    run.allocated = {name: allocated_bytes(parameter) for name, parameter in engine.model.named_parameters()}
    return run


def balanced_update(
    world: World, is_padded: bool, *overrides: str
) -> tuple[dict[str, float], dict[str, Box], float]:
    """One update and a validation pass over batches that not all ranks have: losses, gradients, validation loss."""
    recipe, training_step = tiny_step(world, *overrides)
    engine, data = training_step.engine, training_step.mesh.data
    gradients: dict[str, Box] = {}
    engine.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            boxes(engine, {name: local.grad for name, local in engine.locals.items()})
        )
    )
    batch = global_batch(recipe, 0)
    share = share_of(padded(batch) if is_padded else batch, data.rank, data.size, recipe.data.micro_batch)
    result = training_step.update(share, 0, False)
    losses = {name: mean(data, loss) for name, loss in result.losses.items()}
    return losses, gradients, training_step.evaluate(share_of(batch, data.rank, data.size), 1)


def gradients_of(engine: Engine) -> dict[str, Tensor]:
    """The summed gradients of the parameters in `shards`, before an update. Collective under DeepSpeed."""
    if isinstance(engine, NativeEngine):
        return {name: local.grad for name, local in engine.locals.items()}
    from deepspeed.utils import safe_get_full_grad  # which only its own engine may have imported before

    padded = {name: safe_get_full_grad(parameter) for name, parameter in engine.parameters.items()}
    return {name: padded[name][: len(shard.data)] for name, shard in engine.shards.items()}


def boxes(engine: Engine, tensors: dict[str, Tensor | None]) -> dict[str, Box]:
    """Copies of local tensors, with their places."""
    return {name: _box(replace(shard, data=tensors[name])) for name, shard in engine.shards.items()}


def _box(shard: Shard) -> Box:
    return Box(
        shard.global_shape, shard.offsets, shard.data.detach().clone(), shard.is_expert, shard.is_owner
    )


def allocated_bytes(parameter: Tensor) -> int:
    """Bytes of the storage that a parameter keeps alive on this rank."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.untyped_storage().nbytes()


def over_microbatches(stats: tuple[tuple[MoEStats, ...], ...], name: str) -> Tensor:
    """The sum over microbatches of a count of the statistics, stacked over MoE layers."""
    return sum(counts_of_layers(micro, name) if micro else torch.zeros(0) for micro in stats)


def mean(data: Axis, value: Tensor) -> float:
    """The mean over ranks that read different shares of the batch."""
    return float(data.sum(value.detach().double().clone()) / data.size)


def gathered(of_ranks: list[dict[str, Box]] | list[dict[str, list[Box]]]) -> dict[str, Tensor]:
    """Whole tensors from the boxes of all ranks: every element has one owner, and copies are equal to the bit."""
    whole = {}
    for name in dict.fromkeys(name for of_rank in of_ranks for name in of_rank):
        boxes = [
            (rank, box)
            for rank, of_rank in enumerate(of_ranks)
            for box in (of_rank[name] if isinstance(of_rank.get(name, []), list) else [of_rank[name]])
        ]
        shape = boxes[0][1].global_shape
        tensor, holders = torch.zeros(shape), torch.zeros(shape)
        for _, box in boxes:
            if box.is_owner:
                tensor[place_of(box)] = box.data.float()
                holders[place_of(box)] += 1
        assert (holders == 1).all(), f"{name}: some element is owned by no rank or by several"
        for rank, box in boxes:
            assert torch.equal(tensor[place_of(box)], box.data.float()), (
                f"{name}: rank {rank} holds another copy"
            )
        whole[name] = tensor
    return whole


def place_of(box: Box) -> tuple[slice, ...]:
    """Returns the place of the box in the global tensor."""
    return tuple(slice(start, start + n) for start, n in zip(box.offsets, box.data.shape, strict=True))
