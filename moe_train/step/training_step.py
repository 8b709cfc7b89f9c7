"""One update, whatever engine makes it: passes, losses, agreement of all ranks, skipping, routers that follow loads.

The engine has the distributed model and the optimizer; what is done with them is written here, once. So engines cannot
differ in what a step means, only in how they make it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_train.config.kinds.engine import OwnEngineConfig
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Detail, Recipe
from moe_train.controls import LEARNING_RATE, UNCHANGED, Controls
from moe_train.data.batch import Batch
from moe_train.decoding.translator import Translator
from moe_train.distribute.compiled import compiled_losses
from moe_train.distribute.spawn import spawn_experts
from moe_train.engines.engine import Engine
from moe_train.errors import TrainingError
from moe_train.model.forward import Forward
from moe_train.moe.layers.layer import moe_layers_of
from moe_train.moe.routing import GaugedRouter, LoadRouter, Vocabulary
from moe_train.monitor.gradients import GradientNorms
from moe_train.monitor.similarity import Similarity
from moe_train.monitor.window import LoadWindow
from moe_train.parallel.gathered import free_gathered
from moe_train.parallel.mesh import Mesh
from moe_train.results import LOAD, MoEStats, StepResult, counts_of_layers
from moe_train.step.losses import LossPasses


class TrainingStep:
    """Makes updates and validates, on one rank of several. All methods are collective."""

    def __init__(self, recipe: Recipe, mesh: Mesh, engine: Engine) -> None:
        self.recipe, self.mesh, self.engine = recipe, mesh, engine
        self.forward = Forward(engine.model, recipe.seed, recipe.steps, recipe.precision == "bf16")
        self.objective = build("objective", recipe.objective)
        self.schedule = build("optim.schedule", recipe.optim.schedule, steps=recipe.steps)
        routers = [layer.router for _, layer in moe_layers_of(engine.model)]
        self.load_routers = [router for router in routers if isinstance(router, LoadRouter)]
        self.similar_experts = Similarity(engine.model)
        self.gradient_norms = GradientNorms(engine.model, spec_of(recipe).num_experts)
        self.gauged_routers = [router for router in routers if isinstance(router, GaugedRouter)]
        losses = self.objective.training_loss
        if isinstance(recipe.engine, OwnEngineConfig):
            losses = compiled_losses(losses, mesh, recipe.engine)
        self.passes = LossPasses(
            self.forward,
            losses,
            recipe.objective.num_passes,
            learns_from_batch=recipe.moe.router.learns_from_batch and bool(routers),
            data=mesh.data,
        )

    @classmethod
    def build(cls, recipe: Recipe, mesh: Mesh, vocabulary: Vocabulary | None = None) -> "TrainingStep":
        """Returns a step with the engine of the recipe; only tables of routers need the vocabulary.

        Every process group is used before anything is allocated.
        """
        mesh.use_groups()
        engine: Engine = build("engine", recipe.engine, recipe=recipe, mesh=mesh, vocabulary=vocabulary)
        return cls(recipe, mesh, engine)

    def update(
        self,
        batches: Sequence[Batch],
        step: int,
        stop_requested: bool,
        controls: Controls = UNCHANGED,
        detail: Detail = "off",
    ) -> StepResult:
        """Makes one update from this rank's microbatches; `step` counts the updates already made.

        `detail` says which gradients are measured: none, those of routers (`brief`), or the experts' too (`full`).

        Raises TrainingError if the gradient is not finite and the recipe does not skip such updates.
        """
        self.engine.clear_gradients()
        self.engine.model.train()
        losses = self.passes.run(batches, step, self.engine.backward, controls)
        task, others = losses.means()
        # Whether any rank was asked to stop rides on the reduction of the norm.
        # The workers of a tensor group have the same loss: one of them counts it.
        counted = task.double() if self.mesh.tensor.is_first else task.new_zeros((), dtype=torch.float64)
        shared = torch.stack([counted, task.new_tensor(float(stop_requested)).double()])
        norm, (loss_sum, stops) = self.engine.reduce(shared)
        gradients = self._measured(detail)
        is_skipped = self._is_skipped(norm, step)
        lr = self.recipe.optim.lr * self.schedule(step) * controls.factor(LEARNING_RATE, step)
        if not is_skipped:
            self.engine.update(lr, norm)
            self._follow_loads(losses.stats)
        self._spawn_experts(step + 1)
        return StepResult(
            step=step + 1,
            lr=lr,
            grad_norm=norm,
            loss=task,
            losses=others,
            stats=losses.stats,
            tokens=self.recipe.data.global_batch * self.recipe.data.sequence_length,
            passes=self.passes.num_passes,
            stop=stops > 0,
            mean_loss=loss_sum / self.mesh.data.size,
            is_skipped=is_skipped,
            gradients=gradients,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], step: int, window: LoadWindow | None = None) -> float:
        """Returns the mean task loss over all ranks' batches after `step` updates, in nats per token.

        Nothing about it is random. `window` takes in what the experts got.
        """
        self.engine.model.eval()
        stats = []
        total = torch.zeros(2, dtype=torch.float64, device=self.mesh.world.device)
        for batch in batches:
            logits, moe = self.forward(batch, step)
            stats.append(moe)
            total += total.new_tensor([float(self.objective(logits, batch)), 1.0]) * batch.num_targets
        free_gathered(self.engine.model)
        if window is not None and stats:
            window.add(tuple(stats), step=1)
        loss, tokens = self.mesh.data.total(total)
        return loss / tokens

    def gauges(self, step: int) -> dict[str, list[float]]:
        """Returns what routers show beside their counts, after update `step`: a value for each MoE layer by name."""
        by_layer = [router.gauges(step - 1) for router in self.gauged_routers]
        names = by_layer[0] if by_layer else ()
        return {name: [float(gauges[name]) for gauges in by_layer] for name in names}

    def similarity(self) -> dict[str, Any]:
        """Returns how similar the two most similar experts of each MoE layer are. Collective."""
        return self.similar_experts.measure(self.engine.shards, self.mesh.world.everyone)

    def translator(self) -> Translator:
        """Returns what translates with the model, if that reads a source."""
        recipe = self.recipe
        return Translator(self.forward, self.mesh.world, recipe.decoding, recipe.data.sequence_length)

    def _measured(self, detail: Detail) -> dict[str, Any]:
        if detail == "off":
            return {}
        world = self.mesh.world
        return self.gradient_norms.measure(
            self.engine.gradients(), detail == "full", world.everyone, world.device
        )

    def _is_skipped(self, norm: float, step: int) -> bool:
        """Returns whether to skip an update for its gradient norm. Raises TrainingError where it may not be skipped."""
        if math.isfinite(norm):
            return False
        if not self.recipe.stability.skip_non_finite:
            raise TrainingError(
                f"grad_norm={norm} at step {step + 1}: the loss or a gradient is not finite, and the update was not "
                f"made; lower optim.lr={self.recipe.optim.lr}, lengthen optim.schedule.warmup_steps, or resume from an "
                "earlier checkpoint with --resume STEP; stability.skip_non_finite=true skips such updates"
            )
        return True

    @torch.no_grad()
    def _follow_loads(self, stats: Sequence[tuple[MoEStats, ...]]) -> None:
        """Gives routers that follow the loads those of the global batch: integers, so the same on every layout."""
        if self.load_routers:
            # One kind of router serves all layers.
            loads: Tensor = torch.stack([counts_of_layers(layers, LOAD) for layers in stats]).sum(0)
            for router, load, layer in zip(
                self.load_routers, self.mesh.data.sum(loads), stats[0], strict=True
            ):
                router.after_update(load[: len(layer.load)])

    def _spawn_experts(self, updates: int) -> None:
        """Makes experts out of one where that is due after so many updates, even if the last one was skipped.

        So it depends on the step alone, and what is validated and saved at that step has the copies.
        """
        engine = self.engine
        for name in spawn_experts(engine.model, engine.shards, self.mesh, self.recipe.seed, updates):
            engine.forget(name)
