"""Implements `moe-train data build`, which builds tokens ahead of a run, and `data info`, which describes a corpus.

If a cluster's workers have no network, run `build` on a machine that has one to fill a shared cache.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from moe_train.arguments import Parser, add_overrides, parse_with_overrides
from moe_train.config.check import require_sound
from moe_train.config.load import load_recipe
from moe_train.config.registry import build as build_kind
from moe_train.config.schema import Recipe
from moe_train.data.cache import DamagedEntryError, cache_dir, verified
from moe_train.data.prepare import PreparedData, Source, build_tokens, find_source, open_prepared
from moe_train.data.tokenizer import Tokenizer

SAMPLE_TOKENS = 48


def main(argv: list[str], cache_override: str | None) -> int:
    """Runs `data build|info` with `argv`; `cache_override` is the value of MOE_TRAIN_CACHE.

    Returns the exit code. Raises RecipeError or DataError for a recipe or a corpus that cannot be used.
    """
    parser = Parser(prog="moe-train data", description="Build and describe corpora and tokenizers.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (
        (
            "build",
            "split a recipe's corpus, train its tokenizer and encode it; does nothing if the cache has the tokens",
        ),
        ("info", "describe a recipe's corpus, and show a sample if it has been built"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument("recipe", help="a recipe, for example recipes/switch/tiny.yaml")
        add_overrides(command, "override a key of the recipe, e.g. data.corpus.path=docs")
    arguments = parse_with_overrides(parser, argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    require_sound(recipe)
    return (build if arguments.command == "build" else info)(recipe, cache_dir(cache_override))


def build(recipe: Recipe, cache: Path) -> int:
    """Builds the tokens of `recipe`, unless the cache has them, and describes them."""
    source = find_source(recipe.data, cache, _report)
    build_tokens(source, _report)
    _print(_describe_source(source))
    _print(_describe_tokens(open_prepared(source), recipe.data.corpus.parallel))
    return 0


def info(recipe: Recipe, cache: Path) -> int:
    """Describes the corpus of `recipe`, and its tokens with a sample if they have been built."""
    source = find_source(recipe.data, cache, _report)
    _print(_describe_source(source))
    try:
        verified(source.folder)
    except FileNotFoundError:
        print("tokens       not built yet: `moe-train data build` or a run builds them")
        return 0
    except DamagedEntryError as damage:
        print(f"tokens       damaged ({damage}): `moe-train data build` or a run rebuilds them")
        return 0
    prepared = open_prepared(source)
    _print(_describe_tokens(prepared, recipe.data.corpus.parallel))
    print(f"sample       {_sample(recipe, prepared)!r}")
    return 0


def _describe_source(source: Source) -> Iterator[tuple[str, str]]:
    num_validation = len(source.validation)
    settings = asdict(source.config.corpus)
    yield "corpus", " ".join([settings.pop("kind"), *(f"{key}={value}" for key, value in settings.items())])
    yield "documents", f"{len(source.listing):,}"
    yield "bytes", f"{source.num_bytes:,}"
    yield (
        "split",
        f"{len(source.listing) - num_validation:,} training, {num_validation:,} validation documents",
    )
    yield "fingerprint", source.fingerprint


def _describe_tokens(prepared: PreparedData, parallel: bool) -> Iterator[tuple[str, str]]:
    if parallel:
        parts = prepared.train.num_documents, prepared.validation.num_documents
        yield "pairs", f"{sum(parts):,} ({parts[0]:,} training, {parts[1]:,} validation)"
    train, validation = len(prepared.train.tokens), len(prepared.validation.tokens)
    yield "tokens", f"{prepared.num_tokens:,} ({train:,} training, {validation:,} validation)"
    yield "compression", f"{prepared.bytes_per_token:.2f} bytes per token"
    yield "cache", str(prepared.folder)


def _sample(recipe: Recipe, prepared: PreparedData) -> str:
    """Returns the beginning of the validation text, decoded."""
    tokenizer: Tokenizer = build_kind("data.tokenizer", recipe.data.tokenizer)
    tokenizer.load(prepared.tokenizer_file)
    return tokenizer.decode(prepared.validation.tokens[:SAMPLE_TOKENS].tolist())


def _print(lines: Iterable[tuple[str, str]]) -> None:
    for label, value in lines:
        print(f"{label:<13}{value}")


def _report(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
