"""What one rank does, top to bottom: the file to read first.

`worker/__main__.py` calls `run` in each process that a launcher started; `moe-train run` with one worker calls it in
its own.
"""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moe_cluster.atomic import replace_text
from moe_cluster.contract import attempt_dir
from moe_train.callbacks.callback import RunInfo
from moe_train.callbacks.of_run import callbacks_of
from moe_train.checkpoint.checkpointer import Checkpoint, Checkpointer
from moe_train.checkpoint.layout import Shard
from moe_train.checkpoint.lineage import record_start
from moe_train.config.check import require_sound
from moe_train.config.layout import plan_of
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.data.feed import Feed
from moe_train.data.prepare import PreparedData
from moe_train.decoding.translations import TranslationTest
from moe_train.errors import DataError, UsageError
from moe_train.identity import is_same_run
from moe_train.model.count import count
from moe_train.model.follow import follow
from moe_train.model.model import Model
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.preflight import try_workers
from moe_train.parallel.turn import first_of_host
from moe_train.parallel.world import World
from moe_train.resumption import require_same_recipe
from moe_train.run_folder import accept_recipe, mark_finished
from moe_train.step.training_step import TrainingStep
from moe_train.trainer import Trainer
from moe_train.worker.process import Process

log = logging.getLogger(__name__)


def run(recipe: Recipe, run_dir: Path, resume: str, process: Process) -> int:
    """Train `recipe` in `run_dir` as one rank among those the environment describes."""
    process.progress.expect(recipe.job.hang_s, recipe.job.timeout_s)
    with process.ending_at_stop():
        world, trainer = _started(recipe, run_dir, resume, process)
    exit_code = trainer.fit()
    process.progress.end()
    if world.is_main and trainer.step >= recipe.steps:
        mark_finished(run_dir, trainer.step)
    trainer.callbacks.on_stop(exit_code)
    world.barrier()
    world.leave()
    return exit_code


def _started(recipe: Recipe, run_dir: Path, resume: str, process: Process) -> tuple[World, Trainer]:
    """Does everything before the first step: connects the workers, tokenizes the text, builds and loads the model."""
    job = recipe.job
    world = World.from_env(
        job.device, job.timeout_s, preflight=partial(try_workers, recipe, run_dir, process.attempt)
    )
    keep_freed_memory()
    if recipe.job.threads:
        torch.set_num_threads(recipe.job.threads)
    require_sound(recipe, world.size)
    with first_of_host(world, attempt_dir(run_dir, world.attempt)):
        feed = Feed.open(recipe, world.cache, log.info)
    mesh = Mesh.build(plan_of(recipe.parallel, world.size), world)
    training_step = TrainingStep.build(recipe, mesh, feed.vocabulary())
    engine = training_step.engine
    report_place(process, mesh, engine.model)
    process.write_layout(_layout(mesh, engine.shards))

    checkpointer = Checkpointer(run_dir, recipe.checkpoint, world)
    found = None if resume == "never" else checkpointer.choose("latest" if resume == "auto" else int(resume))
    trainer = _trainer(mesh, training_step, feed, checkpointer, process)
    meta = None
    if found is not None:
        _require_resumable(found, recipe, feed.data)
        meta = checkpointer.load(found, engine.state())
        engine.after_load()
    if world.is_main:
        record_start(run_dir, world.attempt, found.origin if found else None)
        accept_recipe(run_dir, recipe)
        for name, text in recipe.engine.files(recipe, mesh.data.size).items():
            replace_text(run_dir / name, text)
        shutil.copyfile(feed.data.tokenizer_file, run_dir / "tokenizer.json")
    world.barrier()
    if found is not None and meta is not None:
        # A fork or a copy has the weights of another run, but is not to write to that run's page at W&B.
        is_other_run = world.is_main and not is_same_run(run_dir, found.origin)
        trainer.restore({**meta, "callbacks": {}} if is_other_run else meta)

    spec = spec_of(recipe)
    size = count(spec)
    trainer.callbacks.on_start(
        RunInfo(
            recipe=recipe,
            run_dir=run_dir,
            attempt=world.attempt,
            start_step=trainer.step,
            workers=world.size,
            total_parameters=size.total_parameters,
            active_parameters=size.active_parameters,
            moe_layers=tuple(spec.moe_layers),
        )
    )
    trainer.callbacks.on_row(
        {"event": "resume" if found else "start", "step": trainer.step, "attempt": world.attempt}
    )
    return world, trainer


def report_place(process: Process, mesh: Mesh, model: Model) -> None:
    """Has heartbeats name the layer of the model that this rank is in, and the collective that it waits in."""
    follow(model, process.progress.reached)
    process.progress.axes = {str(group.group_name): axes for axes, group in mesh.groups().items()}


def _trainer(
    mesh: Mesh, training_step: TrainingStep, feed: Feed, checkpointer: Checkpointer, process: Process
) -> Trainer:
    recipe, world = feed.recipe, mesh.world
    return Trainer(
        recipe=recipe,
        mesh=mesh,
        training_step=training_step,
        loader=feed.training(),
        validation=feed.validation(recipe.data.validation_sequences, mesh),
        checkpointer=checkpointer,
        callbacks=callbacks_of(recipe.monitor, world.is_main),
        watch=process,
        fingerprint=feed.data.fingerprint,
        translation=_translation(feed, training_step),
    )


def _translation(feed: Feed, training_step: TrainingStep) -> TranslationTest | None:
    """Returns what a run on pairs translates at each validation."""
    sentences = feed.recipe.decoding.sentences
    if not (feed.recipe.data.corpus.parallel and sentences):
        return None
    batches = feed.validation(sentences, training_step.mesh)
    return TranslationTest(batches, feed.tokenizer(), training_step.translator())


def _require_resumable(found: Checkpoint, recipe: Recipe, data: PreparedData) -> None:
    """Raise UsageError or DataError for a checkpoint of another model, seed or text, or of a step after the last."""
    require_same_recipe(found.manifest.meta, recipe, str(found.path))
    before = found.manifest.meta["data_fingerprint"]
    if before != data.fingerprint:
        raise DataError(
            f"data.corpus: the text has changed since this run started (its fingerprint is {data.fingerprint[:12]}; "
            f"the checkpoint of step {found.step} was trained on {before[:12]}), and a run can resume only on the text "
            "that it started with; restore the files, or start over with --resume never"
        )
    if found.step > recipe.steps:
        raise UsageError(
            f"steps={recipe.steps}: the checkpoint to resume from is of step {found.step}; raise steps, or name an "
            "earlier one with --resume STEP"
        )


def _layout(mesh: Mesh, shards: Mapping[str, Shard]) -> dict[str, Any]:
    """Returns this rank's coordinates, and the box of every parameter that it holds."""
    experts = {
        expert
        for shard in shards.values()
        if shard.is_expert
        for expert in range(shard.offsets[0], shard.offsets[0] + shard.data.shape[0])
    }
    return {
        "rank": mesh.world.rank,
        "workers": mesh.world.size,
        "device": str(mesh.world.device),
        "data_rank": mesh.data.rank,
        "tensor_rank": mesh.tensor.rank,
        "expert_rank": mesh.expert.rank,
        "expert_tensor_rank": mesh.expert_tensor.rank,
        "replica_rank": mesh.replica.rank,
        "experts": sorted(experts),
        "parameters": {
            name: {
                "shape": list(shard.data.shape),
                "global_shape": list(shard.global_shape),
                "offsets": list(shard.offsets),
            }
            for name, shard in shards.items()
        },
    }
