"""Generation by an encoder-decoder: against writing token by token alone, and under padding, beams and batches."""

import pytest
import torch
from tiny_model import normal, tiny_recipe, tiny_transformer

from moe_train.config.schema import DecodingConfig
from moe_train.data.batch import IGNORED, Batch
from moe_train.data.tokenizer import EOS_ID, PAD_ID
from moe_train.decoding.generate import generate
from moe_train.decoding.translations import TranslationTest
from moe_train.moe.routing import Pass, RouteContext
from moe_train.moe.rows import Rows
from moe_train.parallel.world import World
from moe_train.random import RandomStream

LENGTHS = (5, 3, 9)
LONGEST = 12
THOR = (
    "model.architecture=encoder_decoder",
    "objective.kind=translation",
    "data.corpus.kind=parallel_files",
    "data.corpus.path=x",
    "model.num_layers=2",
    "moe.every=1",
    "moe.num_experts=3",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
    "moe.router.kind=thor",
)


def batch_of(*sentences: int, width: int = max(LENGTHS)) -> Batch:
    """The sources of some sentences, padded."""
    source = torch.full((len(sentences), width), PAD_ID)
    for row, sentence in enumerate(sentences):
        words = torch.arange(LENGTHS[sentence]) * 31 + 7 * sentence + 2
        source[row, : LENGTHS[sentence]] = words % 290
    lengths = torch.tensor([LENGTHS[sentence] for sentence in sentences])
    empty = torch.full((len(sentences), 1), IGNORED)
    ids = torch.tensor(sentences)
    return Batch(empty, empty, ids, source=source, source_is_real=torch.arange(width) < lengths.unsqueeze(1))


VALIDATION = Pass(training=False, progress=0.0, random=RandomStream(0, 0))


@pytest.fixture(
    scope="module",
    params=[
        *(f"moe.router.inference={way}" for way in ("sequence", "token", "batch", "ensemble")),
        "model.positions=transformer_xl",
    ],
)
def model(request):
    made = tiny_transformer(tiny_recipe(*THOR, request.param))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(normal(*parameter.shape, seed=len(name)) * 0.4)
    return made.eval()


def written_alone(model, sentence: int, longest: int) -> list[int]:
    """Greedy, without padding, beams or other sentences, by the model's own forward pass."""
    batch = batch_of(sentence, width=LENGTHS[sentence])
    source = RouteContext(VALIDATION, Rows(batch.sequence_ids, batch.source))
    tokens = [PAD_ID]
    while len(tokens) < longest and tokens[-1] != EOS_ID:
        read = torch.tensor([tokens])
        context = RouteContext(VALIDATION, Rows(batch.sequence_ids, read))
        logits = model(read, context, batch.source, source).logits.values
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[1:] if tokens[-1] == EOS_ID else [*tokens[1:], EOS_ID]


@torch.no_grad()
def test_greedy_translations_are_those_written_token_by_token_without_padding_or_company(model):
    batch = batch_of(0, 1, 2)
    found = generate(model, batch, VALIDATION, DecodingConfig(beam_size=1), LONGEST)
    assert found.shape == (3, LONGEST)
    for sentence in range(3):
        alone = written_alone(model, sentence, LONGEST)
        assert found[sentence].tolist() == alone + [EOS_ID] * (LONGEST - len(alone))


@torch.no_grad()
def test_with_beams_a_sentence_is_translated_the_same_in_every_batch(model):
    config, together = DecodingConfig(beam_size=3), batch_of(0, 1, 2)
    found = generate(model, together, VALIDATION, config, LONGEST)
    for row, sentence in enumerate((0, 1, 2)):
        alone = batch_of(sentence, width=max(LENGTHS) + 4)
        assert torch.equal(generate(model, alone, VALIDATION, config, LONGEST)[0], found[row])


class Reversing:
    """Translates a source into its tokens in reverse order."""

    world = World(0, 1, 0, 1, torch.device("cpu"))

    def translate(self, batch: Batch, step: int) -> torch.Tensor:
        return batch.source.flip(1)


class Letters:
    """Decodes a token as a letter."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + number - 2) for number in ids)


def test_translations_are_told_in_the_order_of_their_numbers_up_to_their_end():
    def batch(numbers: list[int], sources: list[list[int]], targets: list[list[int]]) -> Batch:
        rows = torch.tensor(targets)
        return Batch(rows.clamp(min=0), rows, torch.tensor(numbers), source=torch.tensor(sources))

    end, none = EOS_ID, IGNORED
    batches = [
        batch([7, 2], [[end, 2, 3], [3, 4, 5]], [[2, end, none], [2, 3, end]]),
        batch([5], [[4, end, 2]], [[4, 4, end]]),
    ]
    test = TranslationTest(batches, Letters(), Reversing())  # type: ignore[arg-type]
    found = [(pair.source, pair.hypothesis, pair.reference) for pair in test.translations(0)]
    assert found == [("bcd", "dcb", "ab"), ("c", "a", "cc"), ("", "ba", "a")]
