"""What one rank does, top to bottom: the file to read first.

`worker/__main__.py` calls `run` in each process that a launcher started; `moe-train run` with one worker calls it in
its own.
"""

import logging
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_cluster.contract import attempt_dir
from moe_cluster.errors import ClusterError, JobError
from moe_cluster.node.check import check_node
from moe_cluster.node.preflight import preflight
from moe_train.callbacks.callback import Callback, RunInfo
from moe_train.callbacks.console import Console
from moe_train.callbacks.group import CallbackGroup, offered_callback
from moe_train.callbacks.jsonl import JsonlSink
from moe_train.callbacks.wandb import WandbSink
from moe_train.checkpoint.checkpointer import Checkpoint, Checkpointer
from moe_train.checkpoint.layout import ShardedState
from moe_train.checkpoint.lineage import record_start
from moe_train.config.check import require_sound
from moe_train.config.kinds.router.hash import NUM_CONTEXTS
from moe_train.config.registry import build
from moe_train.config.resolve import spec_of
from moe_train.config.schema import JobConfig, Recipe
from moe_train.data.batch import Batch
from moe_train.data.cache import cache_dir
from moe_train.data.loader import Loader, MakeBatch, validation_batches
from moe_train.data.pair_loader import PairLoader, validation_pairs
from moe_train.data.prepare import PreparedData, prepare
from moe_train.data.tokenizer import Tokenizer
from moe_train.decoding.translations import TranslationTest
from moe_train.errors import DataError, RunError, UsageError
from moe_train.identity import is_same_run
from moe_train.model.count import count
from moe_train.moe.routing import Vocabulary
from moe_train.moe.token_vectors import token_vectors
from moe_train.objectives.objective import Objective
from moe_train.parallel.host_memory import keep_freed_memory
from moe_train.parallel.plan import Mesh, ParallelPlan
from moe_train.parallel.turn import first_of_host
from moe_train.parallel.world import Meeting, World
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
    """Everything before the first step: the workers meet, the text becomes tokens, the model is built and loaded."""
    job = recipe.job
    world = World.from_env(
        job.device, job.timeout_s, preflight=partial(_preflight, job, run_dir, process.attempt)
    )
    keep_freed_memory()
    if recipe.job.threads:
        torch.set_num_threads(recipe.job.threads)
    require_sound(recipe, world.size)
    with first_of_host(world, attempt_dir(run_dir, world.attempt)):
        data = prepare(recipe.data, cache_dir(world.cache), log.info)
    mesh = Mesh.build(ParallelPlan.of(world.size, recipe.parallel.data, recipe.parallel.expert), world)
    training_step = TrainingStep.build(recipe, mesh, _vocabulary(recipe, data))
    engine = training_step.engine
    process.write_layout(_layout(mesh, engine.state()))

    checkpointer = Checkpointer(run_dir, recipe.checkpoint, world)
    found = None if resume == "never" else checkpointer.choose("latest" if resume == "auto" else int(resume))
    trainer = _trainer(recipe, mesh, training_step, data, checkpointer, run_dir, process)
    meta = None
    if found is not None:
        _require_goes_on(found, recipe, data)
        meta = checkpointer.load(found, engine.state())
    if world.is_main:
        record_start(run_dir, world.attempt, found.origin if found else None)
        accept_recipe(run_dir, recipe)
        shutil.copyfile(data.tokenizer_file, run_dir / "tokenizer.json")
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


def _preflight(job: JobConfig, run_dir: Path, attempt: int, workers: Meeting) -> None:
    """What the recipe says about trying the network and the nodes first; on one node that is the node alone.

    Raises RunError for a fault of theirs, and UsageError for one that another attempt would find again.
    """
    if job.preflight == "never":
        return
    try:
        if workers.store is None or (job.preflight == "auto" and workers.is_one_host):
            if workers.rank == 0:
                check_node(run_dir, attempt, workers.size, workers.use_cuda, log.info)
            return
        preflight(
            workers.store,
            workers.rank,
            workers.size,
            workers.local_rank,
            run_dir,
            attempt,
            job.timeout_s,
            log.info,
        )
    except JobError as error:
        raise UsageError(str(error)) from None
    except ClusterError as error:
        raise RunError(str(error)) from None


def _trainer(
    recipe: Recipe,
    mesh: Mesh,
    training_step: TrainingStep,
    data: PreparedData,
    checkpointer: Checkpointer,
    run_dir: Path,
    process: Process,
) -> Trainer:
    world = mesh.world
    callbacks: dict[str, Callback] = {}
    if world.is_main:
        callbacks = {"jsonl": JsonlSink(), "wandb": WandbSink(recipe.monitor.wandb), "console": Console()}
        callbacks |= {name: offered_callback(name) for name in recipe.monitor.callbacks}
    return Trainer(
        recipe=recipe,
        mesh=mesh,
        training_step=training_step,
        loader=_loader(recipe, data),
        validation=_validation(recipe, data, mesh, recipe.data.validation_sequences),
        checkpointer=checkpointer,
        callbacks=CallbackGroup(callbacks),
        watch=process,
        fingerprint=data.fingerprint,
        translation=_translation(recipe, data, mesh),
    )


def _loader(recipe: Recipe, data: PreparedData) -> Loader | PairLoader:
    length, batch = recipe.data.sequence_length, recipe.data.global_batch
    if recipe.data.corpus.parallel:
        loader = PairLoader(data.train, length, batch, recipe.seed)
        if loader.pairs.num_too_long:
            log.info(
                "left out of training: pairs with a side of more than data.sequence_length=%d tokens (%d of %d)",
                length,
                loader.pairs.num_too_long,
                data.train.num_documents,
            )
        return loader
    return Loader(data.train, length, batch, recipe.seed, _batches(recipe, recipe.seed))


def _validation(recipe: Recipe, data: PreparedData, mesh: Mesh, num_sequences: int) -> list[Batch]:
    """This rank's share of so many validation sequences or pairs."""
    degree = mesh.data.size
    share = (
        data.validation,
        recipe.data.sequence_length,
        num_sequences,
        mesh.data.rank,
        degree,
        recipe.data.micro_batch or recipe.data.global_batch // degree,
        recipe.moe.group_sequences,
    )
    batches = (
        validation_pairs(*share)
        if recipe.data.corpus.parallel
        else validation_batches(*share, _batches(recipe, seed=0))  # the same set whatever the run's seed
    )
    return [batch.to(mesh.world.device) for batch in batches]


def _translation(recipe: Recipe, data: PreparedData, mesh: Mesh) -> TranslationTest | None:
    """What a run on pairs translates at each validation."""
    if not (recipe.data.corpus.parallel and recipe.decoding.sentences):
        return None
    tokenizer: Tokenizer = build("data.tokenizer", recipe.data.tokenizer)
    tokenizer.load(data.tokenizer_file)
    batches = _validation(recipe, data, mesh, recipe.decoding.sentences)
    return TranslationTest(batches, tokenizer, mesh.world)


def _batches(recipe: Recipe, seed: int) -> MakeBatch:
    """What the objective makes of windows of text."""
    objective: Objective = build("objective", recipe.objective)
    return partial(objective.batch, vocabulary=recipe.data.tokenizer.size, seed=seed)


def _vocabulary(recipe: Recipe, data: PreparedData) -> Vocabulary:
    size = spec_of(recipe).vocabulary_size

    def vectors() -> Tensor:
        return token_vectors(torch.from_numpy(data.count_neighbours(size, NUM_CONTEXTS)))

    # Every layer with a table asks, and has the same answer.
    return Vocabulary(size, cache(lambda: torch.from_numpy(data.count_tokens(size))), cache(vectors))


def _require_goes_on(found: Checkpoint, recipe: Recipe, data: PreparedData) -> None:
    """Refuse a checkpoint with which this recipe would not go on: of another model or seed, of other text, too late."""
    require_same_recipe(found.manifest.meta, recipe, str(found.path))
    before = found.manifest.meta["data_fingerprint"]
    if before != data.fingerprint:
        raise DataError(
            f"data.corpus: its text has changed since the run began (fingerprint {data.fingerprint[:12]}, the "
            f"checkpoint of step {found.step} has {before[:12]}), and going on with other text would not be a "
            "resume; restore the files, or start afresh with --resume never"
        )
    if found.step > recipe.steps:
        raise UsageError(
            f"steps={recipe.steps}: the checkpoint to go on from is of step {found.step}; raise steps, or name an "
            "earlier one with --resume STEP"
        )


def _layout(mesh: Mesh, state: ShardedState) -> dict[str, Any]:
    """This rank's coordinates, and which box of every parameter it holds."""
    held = {name.removeprefix("model."): shard for name, shard in state.items() if name.startswith("model.")}
    experts = {
        expert
        for shard in held.values()
        if shard.is_expert
        for expert in range(shard.offsets[0], shard.offsets[0] + shard.data.shape[0])
    }
    return {
        "rank": mesh.world.rank,
        "workers": mesh.world.size,
        "device": str(mesh.world.device),
        "data_rank": mesh.data.rank,
        "expert_rank": mesh.expert.rank,
        "replica_rank": mesh.replica.rank,
        "experts": sorted(experts),
        "parameters": {
            name: {
                "shape": list(shard.data.shape),
                "global_shape": list(shard.global_shape),
                "offsets": list(shard.offsets),
            }
            for name, shard in held.items()
        },
    }
