"""Runs `moe-train translate RUN`: translates a run's validation pairs, or the user's text, with its checkpoint."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moe_train.arguments import Parser, add_overrides, parse_with_overrides
from moe_train.checkpoint.checkpointer import Checkpoint, Checkpointer
from moe_train.checkpoint.lineage import newest_attempt
from moe_train.config.check import require_sound
from moe_train.config.load import load_recipe
from moe_train.config.resolve import spec_of, uncompiled
from moe_train.config.schema import Recipe
from moe_train.data.batch import IGNORED, Batch
from moe_train.data.corpora.lines import lines_of
from moe_train.data.feed import Feed, read_tokenizer
from moe_train.data.tokenizer import PAD_ID, Tokenizer
from moe_train.decoding.scores import scores
from moe_train.decoding.translations import TranslationTest
from moe_train.decoding.translator import Translator
from moe_train.errors import CheckpointError, DataError, UsageError
from moe_train.moe.routing import Vocabulary
from moe_train.monitor.run import find_run
from moe_train.parallel.mesh import Mesh
from moe_train.parallel.world import World
from moe_train.run_folder import RECIPE_FILE
from moe_train.step.training_step import TrainingStep

SENTENCES_AT_ONCE = 32
ONE_WORKER = (
    "parallel.data=null",
    "parallel.tensor=1",
    "parallel.expert=1",
    "parallel.expert_tensor=1",
    "parallel.sequence=false",
    "engine.kind=native",
    "moe.dispatch.kind=auto",
)
EPILOG = """\
examples:
  moe-train translate runs/thor-tiny-translation                       validation pairs, with BLEU and chrF
  moe-train translate runs/thor-tiny-translation --step 200 moe.router.inference=ensemble
  echo "Click the button." | moe-train translate runs/thor-tiny-translation --file -
"""


def main(argv: Sequence[str]) -> int:
    """Translate with a run's checkpoint in this process; returns the exit code.

    Raises MoETrainError if run, checkpoint or text are missing, or if the run was not trained to translate.
    """
    options = parse_with_overrides(_parser(), argv)
    run_dir = find_run(options.run)
    recipe = load_recipe(run_dir / RECIPE_FILE, [*ONE_WORKER, *options.overrides])
    require_sound(recipe, 1)
    if not recipe.data.corpus.parallel:
        raise UsageError(
            f"RUN={options.run}: must be trained on a parallel corpus, and data.corpus.kind={recipe.data.corpus.kind} "
            "is none; name a translation run, such as one of recipes/thor/tiny-translation.yaml"
        )
    world = replace(World.from_env(recipe.job.device), attempt=newest_attempt(run_dir))
    tokenizer = read_tokenizer(recipe, run_dir / "tokenizer.json")
    mesh = Mesh(world)
    translator, found = _trained(recipe, run_dir, options.step, mesh)
    if options.file is None:
        _translate_validation(recipe, translator, found, tokenizer, mesh)
    else:
        for batch in _batches(_lines(options.file), tokenizer, recipe.data.sequence_length):
            test = TranslationTest([batch.to(world.device)], tokenizer, translator)
            for pair in test.translations(found.step):
                # A line for each line: a model that has learned little may write line breaks.
                print(" ".join(pair.hypothesis.splitlines()), flush=True)
    return 0


def _trained(recipe: Recipe, run_dir: Path, step: int | None, mesh: Mesh) -> tuple[Translator, Checkpoint]:
    """Returns a translator with the weights of the checkpoint of `step`, or of the newest."""
    vocabulary = Vocabulary.without_text(spec_of(recipe).vocabulary_size)  # tables are loaded
    training_step = TrainingStep.build(uncompiled(recipe), mesh, vocabulary)
    checkpoints = Checkpointer(run_dir, recipe.checkpoint, mesh.world)
    found = checkpoints.choose("latest" if step is None else step)
    if found is None:
        raise CheckpointError(f"{run_dir}: has no checkpoint yet; wait for the first one, or train the run")
    checkpoints.load(found, training_step.engine.state())
    training_step.engine.after_load()
    return training_step.translator(), found


def _translate_validation(
    recipe: Recipe, translator: Translator, found: Checkpoint, tokenizer: Tokenizer, mesh: Mesh
) -> None:
    """Print source, translation and reference of the validation pairs, then both scores."""
    feed = Feed.open(recipe, mesh.world.cache, lambda sentence: print(sentence, file=sys.stderr))
    if feed.data.fingerprint != found.manifest.meta["data_fingerprint"]:
        raise DataError(
            "data.corpus: the corpus changed since the run began, so its validation pairs may include training pairs; "
            "restore the text, or translate a file with --file"
        )
    batches = feed.validation(max(recipe.decoding.sentences, 1), mesh, SENTENCES_AT_ONCE)
    pairs = TranslationTest(batches, tokenizer, translator).translations(found.step)
    for pair in pairs:
        print(f"source       {pair.source}\ntranslation  {pair.hypothesis}\nreference    {pair.reference}\n")
    score = scores([pair.hypothesis for pair in pairs], [pair.reference for pair in pairs])
    print(
        f"step {found.step}, {len(pairs)} pairs: BLEU {score['bleu']:.2f}, chrF {score['chrf']:.2f} "
        f"(beam {recipe.decoding.beam_size}, length penalty {recipe.decoding.length_penalty:g})"
    )


def _lines(file: str) -> list[str]:
    """Read the lines of a file, or of standard input for `-`."""
    try:
        return lines_of(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--file {file}: cannot be read as UTF-8 text ({error}); name another file"
        ) from None


def _batches(lines: Sequence[str], tokenizer: Tokenizer, longest: int) -> Iterator[Batch]:
    """Yield batches of sources without targets, in the order of the lines."""
    encoded = tokenizer.encode(lines)
    for number, tokens in enumerate(encoded, start=1):
        if len(tokens) > longest:
            raise UsageError(
                f"--file: line {number} has {len(tokens)} tokens, which must be <= data.sequence_length={longest}; "
                "split the line"
            )
    for first in range(0, len(encoded), SENTENCES_AT_ONCE):
        part = encoded[first : first + SENTENCES_AT_ONCE]
        width = max(len(tokens) for tokens in part)
        source = torch.tensor([tokens + [PAD_ID] * (width - len(tokens)) for tokens in part])
        yield Batch(
            tokens=source.new_full((len(part), 1), PAD_ID),
            targets=source.new_full((len(part), 1), IGNORED),
            sequence_ids=torch.arange(first, first + len(part)),
            source=source,
            source_is_real=torch.arange(width) < torch.tensor([len(tokens) for tokens in part]).unsqueeze(1),
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-train translate",
        description="Translate with a run's checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name below runs/")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument(
        "--file",
        help="text to translate, one sentence per line; -: standard input (default: the validation pairs)",
    )
    add_overrides(parser, "override a key of the run's recipe, e.g. decoding.beam_size=1")
    return parser
