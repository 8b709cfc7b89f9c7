"""The native engine: torch FSDP2 for what all ranks share, expert parallelism for the experts.

Forward, backward, accumulation, one gradient norm, clipping, update. Nothing here depends on the layout: the
gradients that reach the norm are those of the mean loss over the global batch, each element held by one rank.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from moe_train.checkpoint.layout import Shard, ShardedState
from moe_train.config.kinds.engine import NativeEngineConfig
from moe_train.config.registry import build
from moe_train.config.schema import Recipe
from moe_train.data.batch import Batch
from moe_train.decoding.generate import generate
from moe_train.distribute.apply import distribute
from moe_train.distribute.expert import moe_layers_of
from moe_train.distribute.spawn import spawn_experts
from moe_train.errors import TrainingError
from moe_train.model.transformer import EncoderDecoder
from moe_train.moe.policy import rewarded, token_losses
from moe_train.moe.routing import LoadRouter, RouteContext, Vocabulary
from moe_train.moe.whole_batch import batch_sums, of_whole_batch, watched_over_batch
from moe_train.objectives.objective import Objective, TrainingLoss
from moe_train.optim.norm import squared_norm
from moe_train.optim.state import forget, sharded_state
from moe_train.parallel.plan import Mesh
from moe_train.random import RandomStream
from moe_train.results import MoEStats, StepResult, padded_loads


class NativeEngine:
    """See engine.py. fp32 weights and updates; with precision=bf16 the matrix products run in bf16."""

    def __init__(
        self, config: NativeEngineConfig, *, recipe: Recipe, mesh: Mesh, vocabulary: Vocabulary | None = None
    ):
        self.recipe, self.mesh = recipe, mesh
        built = distribute(recipe, mesh, config.reshard_after_forward, vocabulary)
        self.model, self.shards, self.expert_gradients = built.model, built.shards, built.expert_gradients
        self.parameters = dict(self.model.named_parameters())
        self.objective: Objective = build("objective", recipe.objective)
        self.num_passes = recipe.objective.num_passes
        self.learns_from_batch = recipe.moe.router.learns_from_batch and bool(moe_layers_of(self.model))
        self.schedule = build("optim.schedule", recipe.optim.schedule, steps=recipe.steps)
        self.locals = {name: shard.data for name, shard in self.shards.items()}
        self.optimizer: torch.optim.Optimizer = build("optim", recipe.optim, shards=self.shards, mesh=mesh)

    def step(self, batches: Sequence[Batch], step: int, stop_requested: bool) -> StepResult:
        self._clear_gradients()
        losses, stats = self._accumulate(batches, step)
        self._take_gradients()
        task, auxiliary = _mean_losses(losses, stats)
        norm, mean_loss, stop = self._agree(task, stop_requested)
        is_skipped = not math.isfinite(norm)
        if is_skipped and not self.recipe.stability.skip_non_finite:
            raise TrainingError(
                f"grad_norm={norm} at step {step + 1}: the loss or a gradient is not finite, and the update was not "
                f"made; lower optim.lr={self.recipe.optim.lr}, lengthen optim.schedule.warmup_steps, or go back to an "
                "earlier checkpoint with --resume STEP; stability.skip_non_finite=true leaves such updates out"
            )
        lr = self.recipe.optim.lr * self.schedule(step)
        if not is_skipped:
            self._update(lr, norm)
            self._tell_loads(stats)
        self._spawn_experts(step + 1)
        tokens = self.recipe.data.global_batch * self.recipe.data.sequence_length
        return StepResult(
            step=step + 1,
            lr=lr,
            grad_norm=norm,
            loss=task,
            losses=auxiliary,
            stats=stats,
            tokens=tokens,
            passes=self.num_passes,
            stop=stop,
            mean_loss=mean_loss,
            is_skipped=is_skipped,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], step: int) -> float:
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.mesh.world.device)
        for batch in batches:
            logits, _ = self._forward(batch, step)
            total += total.new_tensor([float(self.objective(logits, batch)), 1.0]) * batch.num_targets
        self._free_gathered()
        loss, tokens = self.mesh.world.total(total)
        return loss / tokens

    @torch.no_grad()
    def translate(self, batch: Batch, step: int) -> Int[Tensor, "B N"]:
        self.model.eval()
        assert isinstance(self.model, EncoderDecoder), "config.check lets only these read pairs"
        with self._products(batch):
            tokens = generate(
                self.model,
                batch,
                self._context(batch, step),
                self.recipe.decoding,
                self.recipe.data.sequence_length,
                self._all_agree,
            )
        self._free_gathered()
        return tokens

    def state(self) -> ShardedState:
        state = {f"model.{name}": shard for name, shard in self.shards.items()}
        for name, buffer in self.model.named_buffers():
            state[f"model.{name}"] = Shard(buffer, tuple(buffer.shape), (0,) * buffer.ndim)
        return state | sharded_state(self.optimizer, self.shards)

    def _context(self, batch: Batch, step: int, pass_index: int = 0) -> RouteContext:
        return RouteContext(
            training=self.model.training,
            progress=step / self.recipe.steps,
            random=RandomStream(self.recipe.seed, step, batch.sequence_ids, pass_index),
            token_values=batch.tokens,
            is_real=batch.is_real,
        )

    def _forward(self, batch: Batch, step: int, pass_index: int = 0) -> tuple[Tensor, tuple[MoEStats, ...]]:
        context = self._context(batch, step, pass_index)
        with self._products(batch):
            if batch.source is None:
                return self.model(batch.tokens, context)
            of_source = replace(context, token_values=batch.source, is_real=batch.source_is_real)
            return self.model(batch.tokens, context, batch.source, of_source)

    def _products(self, batch: Batch) -> torch.autocast:
        """What the model runs under: the precision of its matrix products."""
        use_bf16 = self.recipe.precision == "bf16"
        return torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=use_bf16)

    def _free_gathered(self) -> None:
        """FSDP2 frees gathered weights after a backward pass only: kept, they would hide what is loaded next."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _all_agree(self, answer: bool) -> bool:
        """Whether all ranks say yes. Collective."""
        noes = torch.tensor(float(not answer), device=self.mesh.world.device)
        return float(self.mesh.world.sum(noes)) == 0

    def _accumulate(
        self, batches: Sequence[Batch], step: int
    ) -> tuple[list[TrainingLoss], tuple[tuple[MoEStats, ...], ...]]:
        """All passes and the backward of every microbatch; gradients are reduced over ranks with the last one."""
        self.model.train()
        shares = len(batches) * self.mesh.world.size
        sums = self._count(batches, step) if len(batches) > 1 and self.learns_from_batch else None
        losses: list[TrainingLoss] = []
        stats: list[tuple[MoEStats, ...]] = []
        for index, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(index == len(batches) - 1)
            passes = [
                _rewarded(*self._forward(batch, step, number), batch) for number in range(self.num_passes)
            ]
            if len(batches) == 1 < shares:
                sums = batch_sums(self.mesh.world, [layers for _, layers in passes], self.num_passes)
            if sums is not None:
                passes = [
                    (logits, of_whole_batch(layers, of_pass, shares))
                    for (logits, layers), of_pass in zip(passes, sums, strict=True)
                ]
            loss = self.objective.training_loss([logits for logits, _ in passes], batch)
            total = loss.total + sum(_auxiliary(layer) for _, of_layers in passes for layer in of_layers)
            (total / len(batches)).backward()
            losses.append(loss.detached())
            stats.extend(tuple(_detached(of_layer) for of_layer in of_layers) for _, of_layers in passes)
        if sums is None and shares > 1:
            stats = watched_over_batch(self.mesh.world, stats, self.num_passes)
        return losses, tuple(stats)

    @torch.no_grad()
    def _count(self, batches: Sequence[Batch], step: int) -> Tensor:
        """The sums of the batch's losses, by a forward pass over every microbatch before any has a gradient.

        Draws are functions of the step and the sequence, so these passes route as those with gradient do. Collective.
        """
        stats = [
            self._forward(batch, step, number)[1] for batch in batches for number in range(self.num_passes)
        ]
        return batch_sums(self.mesh.world, stats, self.num_passes)

    def _clear_gradients(self) -> None:
        owned = {id(tensor) for buffers in self.expert_gradients for tensor in buffers.tensors}
        for buffers in self.expert_gradients:
            buffers.reset()
        for parameter in self.parameters.values():
            if parameter.grad is not None and id(parameter.grad) not in owned:
                parameter.grad = None

    def _take_gradients(self) -> None:
        """Give the optimizer's local tensors the local part of the gradients."""
        for name, parameter in self.parameters.items():
            grad, local = parameter.grad, self.locals[name]
            assert grad is not None, f"{name} has no gradient"
            local.grad = grad.to_local() if hasattr(grad, "to_local") else grad

    def _agree(self, loss: Tensor, stop_requested: bool) -> tuple[float, float, bool]:
        """The global gradient norm, the mean loss, and whether any rank was asked to stop, in one reduction."""
        grads = [local.grad for local in self.locals.values() if local.grad is not None]
        local = squared_norm(grads)
        packed = torch.stack([local, loss.double(), local.new_tensor(float(stop_requested))])
        squared, loss_sum, stop = self.mesh.world.total(packed)
        return squared**0.5, loss_sum / self.mesh.world.size, stop > 0

    def _update(self, lr: float, norm: float) -> None:
        """Clip and update in one pass over the gradients: fused optimizers divide them by `grad_scale`."""
        excess = norm / (self.recipe.optim.clip or math.inf)
        scale = torch.tensor(excess, device=self.mesh.world.device) if excess > 1 else None
        self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    @torch.no_grad()
    def _tell_loads(self, stats: tuple[tuple[MoEStats, ...], ...]) -> None:
        """Give routers that follow the loads those of the global batch: integers, so the same on every layout."""
        routers = [layer.router for _, layer in moe_layers_of(self.model)]
        following = [router for router in routers if isinstance(router, LoadRouter)]
        if following:
            # One kind of router serves all layers.
            loads = torch.stack([padded_loads(micro) for micro in stats]).sum(0)
            for router, load, layer in zip(following, self.mesh.world.sum(loads), stats[0], strict=True):
                router.after_update(load[: len(layer.load)])

    def _spawn_experts(self, updates: int) -> None:
        """Make experts out of one where that is due after so many updates, be the last one left out or not.

        So it depends on the step alone, and what is validated and saved at that step has the copies.
        """
        for name in spawn_experts(self.model, self.shards, self.mesh, self.recipe.seed, updates):
            forget(self.optimizer, self.shards[name])


def _rewarded(
    logits: Tensor, of_layers: tuple[MoEStats, ...], batch: Batch
) -> tuple[Tensor, tuple[MoEStats, ...]]:
    """A pass whose routers have their reward, where any learns by it."""
    if all(layer.policy is None for layer in of_layers):
        return logits, of_layers
    losses = token_losses(logits, batch.targets)
    return logits, tuple(rewarded(layer, losses) for layer in of_layers)


def _auxiliary(stats: MoEStats) -> Tensor | int:
    """A layer's auxiliary losses, each times its coefficient."""
    return sum(stats.coefficients[name] * loss for name, loss in stats.losses.items())


def _detached(stats: MoEStats) -> MoEStats:
    """The same statistics without the graph behind the losses."""
    return stats._replace(
        router_entropy=stats.router_entropy.detach(),
        losses={name: loss.detach() for name, loss in stats.losses.items()},
        batch_losses={
            name: part._replace(totals=part.totals.detach()) for name, part in stats.batch_losses.items()
        },
    )


def _mean_losses(
    losses: list[TrainingLoss], stats: tuple[tuple[MoEStats, ...], ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's means over microbatches (and passes): the task loss, and each other loss, summed over layers."""
    others: dict[str, Tensor] = {}

    def add(name: str, loss: Tensor) -> None:
        others[name] = others.get(name, torch.zeros_like(loss)) + loss

    for of_batch in losses:
        for name, part in of_batch.parts.items():
            add(name, part / len(losses))
    for of_layers in stats:
        for of_layer in of_layers:
            for name, auxiliary in of_layer.losses.items():
                add(name, auxiliary / len(stats))
    return torch.stack([of_batch.task for of_batch in losses]).mean(), others
