"""The systems of bench_parallel.py: our engines, DeepSpeed's MoE layer under its own engine, megatron-core's GPT-MoE.

All train one model from the same weights on the same batches, with fused AdamW and a clip. DeepSpeed's layers and
megatron-core's model come from tests/distributed, where 20 losses of each are compared with ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from deepspeed_layers import start_deepspeed, use_deepspeed_layers
from megatron_facade import on_cpu
from megatron_gpt import gpt, load
from tiny_model import global_batch, share_of, tiny_transformer
from torch import Tensor, nn

from moe_train.config.kinds.optim import AdamWConfig
from moe_train.config.layout import plan_of
from moe_train.config.registry import build
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.model.model import Model
from moe_train.moe.routing import Pass
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.random import RandomStream
from moe_train.step.training_step import TrainingStep

CAPACITY_FACTOR = 1.25
STAGE = 1
"""Of ZeRO, for DeepSpeed's layers as for our engine."""
NUM_BATCHES = 4
Step = Callable[[], float]
"""Makes an update; returns the mean loss of this worker's tokens."""


def our_step(recipe: Recipe, world: World) -> tuple[Step, TrainingStep]:
    """Returns the update of one of our engines."""
    mesh = Mesh.build(plan_of(recipe.parallel, world.size), world)
    training_step = TrainingStep.build(recipe, mesh)
    batches = Batches(recipe, world)

    def step() -> float:
        done = batches.done
        return float(training_step.update([batches.take()], done, False).loss)

    return step, training_step


class Batches:
    """This worker's shares of the global batches, which come again and again."""

    def __init__(self, recipe: Recipe, world: World):
        whole = [global_batch(recipe, step) for step in range(NUM_BATCHES)]
        self._shares = [share_of(batch, world.rank, world.size)[0] for batch in whole]
        self.done = 0

    def take(self) -> Batch:
        """Returns the next share."""
        self.done += 1
        return self._shares[(self.done - 1) % NUM_BATCHES]


class WithLoss(nn.Module):
    """Our transformer, whose layers may be DeepSpeed's, with the loss as its result."""

    def __init__(self, model: Model, recipe: Recipe):
        super().__init__()
        self.model, self.seed = model, recipe.seed
        self.objective = build("objective", recipe.objective)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Returns the loss to be trained, and the task's part of it."""
        output = self.model(*self.model.inputs(batch, Pass(True, 0.0, RandomStream(self.seed, step))))
        task = self.objective(output.logits, batch)
        return task + sum(
            layer.coefficients["balance"] * layer.losses["balance"] for layer in output.moe
        ), task


def deepspeed_step(recipe: Recipe, world: World, capacity_factor: float | None) -> Step:
    """Returns the update of DeepSpeed's MoE layers in our transformer, made by DeepSpeed's own engine alone."""
    start_deepspeed(world)
    import deepspeed
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    model = tiny_transformer(recipe)
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    use_deepspeed_layers(model, weights, world, world.size, capacity_factor)
    groups: Any = {"params": list(model.parameters()), "name": "parameters"}
    engine, *_ = deepspeed.initialize(
        model=WithLoss(model, recipe),
        optimizer=adamw(recipe, split_params_into_different_moe_groups_for_optimizer(groups)),
        config={
            "train_micro_batch_size_per_gpu": recipe.data.global_batch // world.size,
            "gradient_clipping": recipe.optim.clip,
            "zero_optimization": {"stage": STAGE},
            "zero_allow_untested_optimizer": True,
            "log_level": "error",
        },
    )
    batches = Batches(recipe, world)

    def step() -> float:
        done = batches.done
        loss, task = engine(batches.take(), done)
        engine.backward(loss)
        engine.step()
        return float(task)

    return step


def megatron_step(recipe: Recipe, world: World) -> Step:
    """Returns the update of megatron-core's GPT-MoE under its own data parallelism; its norm and clip are made here."""
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    ours = tiny_transformer(recipe)
    weights: Mapping[str, Tensor] = ours.state_dict()
    with on_cpu():
        parallel_state.initialize_model_parallel(
            expert_model_parallel_size=world.size, expert_tensor_parallel_size=1
        )
        model_parallel_cuda_manual_seed(0)
        model = gpt(recipe, 1, world.size)
        load(model.module, weights, recipe.model.num_heads)
    optimizer = adamw(recipe, model.parameters())
    batches, length = Batches(recipe, world), recipe.data.sequence_length
    positions = torch.arange(length).expand(recipe.data.global_batch // world.size, -1)
    is_hidden = torch.ones(1, 1, length, length).triu(1).bool()

    def step() -> float:
        batch = batches.take()
        with on_cpu():
            optimizer.zero_grad()  # or the next gradient is added to itself: `grad` is `main_grad` below
            model.zero_grad_buffer()
            loss = model(batch.tokens, positions, is_hidden, labels=batch.targets).mean()
            loss.backward()
            finalize_model_grads([model])
            for parameter in model.parameters():
                parameter.grad = parameter.main_grad
            clip(model, recipe.optim.clip or 1.0, world)
            optimizer.step()
        return float(loss)

    return step


def adamw(recipe: Recipe, parameters: Any) -> torch.optim.Optimizer:
    """Returns torch's fused AdamW with the recipe's settings, without weight decay."""
    config = recipe.optim
    assert isinstance(config, AdamWConfig)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=betas, eps=config.epsilon, weight_decay=0.0, fused=True
    )


def clip(model: nn.Module, limit: float, world: World) -> None:
    """Clips to one norm over what all workers hold. Experts (`allreduce` is false) are on one worker each."""
    owned, common = [], []
    for parameter in model.parameters():
        (common if getattr(parameter, "allreduce", True) else owned).append(parameter.grad)
    squared = torch.nn.utils.get_total_norm(common).square() / world.size
    if owned:
        squared += torch.nn.utils.get_total_norm(owned).square()
    norm = world.everyone.sum(squared).sqrt().item()
    if norm > limit:
        torch._foreach_mul_(owned + common, limit / norm)
