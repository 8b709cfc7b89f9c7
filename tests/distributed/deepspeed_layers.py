"""Trains our model with DeepSpeed's MoE layers in the place of ours, with the same weights: an oracle of the layer.

Gradients are averaged here, by hand: DeepSpeed's engine is not in question. D model width, E experts, F hidden width.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from oracle_run import STEPS, batch_of, optimizer_of
from tiny_model import share_of, tiny_transformer
from torch import Tensor, nn

from moe_train.config.schema import Recipe
from moe_train.config.spec import MoESpec
from moe_train.model.model import Model
from moe_train.moe.dispatch.through import Beside
from moe_train.moe.layers.layer import MoELayer
from moe_train.moe.routing import Pass, RouteContext
from moe_train.parallel.world import World
from moe_train.random import RandomStream
from moe_train.results import MoEStats

NAMES = {"router.weight": "gate.wg.weight", "experts.w_in": "0.weight", "experts.w_out": "2.weight"}
"""Names of our layer's weights, and theirs: of the gate, and in each expert."""


class DeepSpeedLayer(MoELayer):
    """Is DeepSpeed's layer with the interface of ours. It draws nothing."""

    def __init__(
        self,
        spec: MoESpec,
        weights: Mapping[str, Tensor],
        world: World,
        ep_size: int,
        capacity_factor: float | None = None,
    ):
        """`weights` are of our layer, of all experts. Without a capacity factor no token is dropped."""
        nn.Module.__init__(self)
        from deepspeed.moe.layer import MoE

        up, down = (
            nn.Linear(spec.d_model, spec.d_ff, bias=False),
            nn.Linear(spec.d_ff, spec.d_model, bias=False),
        )
        self.coefficient = spec.router.balance_coefficient
        self.moe = MoE(
            spec.d_model,
            nn.Sequential(up, nn.ReLU(), down),
            num_experts=spec.num_experts,
            ep_size=ep_size,
            k=spec.router.num_choices,
            capacity_factor=capacity_factor or 1.0,
            drop_tokens=capacity_factor is not None,
            min_capacity=0,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        self._load(weights, world.rank % ep_size)

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor], rank: int) -> None:
        inner = self.moe.deepspeed_moe
        inner.gate.wg.weight.copy_(weights["router.weight"].t())
        experts = inner.experts.deepspeed_experts
        for index, expert in enumerate(experts, start=rank * len(experts)):
            for ours in ("experts.w_in", "experts.w_out"):
                expert.get_parameter(NAMES[ours]).copy_(weights[ours][index].t())

    def forward(
        self, x: Tensor, context: RouteContext, residual: Tensor | None = None, beside: Beside | None = None
    ) -> tuple[Tensor, MoEStats]:
        """Returns the output of their layer, their balance loss and their loads."""
        assert beside is None, "no shared experts"
        return self.route(x, context)

    def route(self, x: Tensor, context: RouteContext) -> tuple[Tensor, MoEStats]:
        """Routes and runs the experts at once, as DeepSpeed does; the decision is what they made of each token."""
        y, balance, load = self.moe(x)
        return y, MoEStats({"load": load}, {"balance": balance}, {"balance": self.coefficient})

    def through_experts(self, x: Tensor, decision: Tensor, context: RouteContext) -> Tensor:
        """Returns what the experts have made already."""
        return decision


def train_deepspeed(
    world: World, recipe: Recipe, weights: Mapping[str, Tensor], *, expert: int = 1
) -> list[float]:
    """Returns the losses of STEPS updates with DeepSpeed's layers, begun from `weights`. Collective."""
    start_deepspeed(world)
    model = tiny_transformer(recipe)
    use_deepspeed_layers(model, weights, world, expert)
    for block in model.blocks:
        block.feedforward.moe.set_deepspeed_parallelism()  # which DeepSpeed's engine does where it is used
    optimizer = optimizer_of(recipe, model.parameters())
    losses = []
    for step in range(STEPS):
        (batch,) = share_of(batch_of(recipe, step), world.rank, world.size)
        output = model(*model.inputs(batch, Pass(True, 0.0, RandomStream(recipe.seed, step))))
        logits = output.logits.values.flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, batch.targets.flatten())
        balance = sum(layer.coefficients["balance"] * layer.losses["balance"] for layer in output.moe)
        optimizer.zero_grad()
        (loss + balance).backward()
        average_gradients(model, world, expert)
        optimizer.step()
        losses.append(float(world.everyone.sum(loss.detach().double())) / world.size)
    return losses


def use_deepspeed_layers(
    model: Model,
    weights: Mapping[str, Tensor],
    world: World,
    ep_size: int,
    capacity_factor: float | None = None,
) -> None:
    """Puts DeepSpeed's layers in the place of all feed-forward blocks of a model, with the same weights."""
    for index, block in enumerate(model.blocks):
        prefix = f"layers.{index}.feedforward."
        of_layer = {name.removeprefix(prefix): value for name, value in weights.items() if prefix in name}
        spec = block.feedforward.spec
        block.feedforward = DeepSpeedLayer(spec, of_layer, world, ep_size, capacity_factor)


def start_deepspeed(world: World) -> None:
    """Makes DeepSpeed use the process group that there is, and compile nothing."""
    world.introduce_to_deepspeed()
    import deepspeed
    from deepspeed import ops

    ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def average_gradients(model: nn.Module, world: World, expert: int) -> None:
    """Averages over all workers; the exchange has summed what the workers with other experts sent."""
    from deepspeed.utils import groups

    for name, parameter in model.named_parameters():
        group = None
        if expert > 1 and "deepspeed_experts" in name:
            group = groups._get_expert_data_parallel_group(f"ep_size_{expert}")
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad.div_(world.size)
