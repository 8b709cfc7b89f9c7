"""Runs that translate at validation do so on every layout like one process, and then train on like it.

Sequences that are cut over a tensor group are whole while a prefix grows.
"""

import pytest
import torch
from gloo_workers import run_workers
from layout_run import mean, tiny_step
from tiny_model import global_batch, share_of

from moe_train.data.tokenizer import EOS_ID
from moe_train.parallel.world import World

TRANSLATION = (
    "model.architecture=encoder_decoder",
    "objective.kind=translation",
    "data.corpus.kind=parallel_files",
    "data.corpus.path=x",
    "data.tokenizer.vocab_size=301",
    "decoding.beam_size=2",
    "model.num_heads=4",
    "model.dropout=0.1",
    "model.init_scale=3",  # as sure of its words as after long training
    "optim.lr=0.5",
)
LIMITED = (*TRANSLATION, "model.positions=learned")
THOR = (
    *TRANSLATION,
    "model.positions=relative",
    "moe.router.kind=thor",
    "moe.capacity_factor=null",
    "moe.eval_capacity_factor=null",
)
XL = (*TRANSLATION, "model.positions=transformer_xl", "moe.shared_experts=1", "model.tied_embeddings=false")
SEQUENCE = ("parallel.tensor=2", "parallel.sequence=true")
ON_TWO = [(LIMITED, (*SEQUENCE, "parallel.expert=2"))]
ON_FOUR = [
    (LIMITED, (*SEQUENCE, "engine.recompute=block")),
    (LIMITED, ("parallel.tensor=4", "parallel.sequence=true", "parallel.expert=4")),
    (THOR, (*SEQUENCE, "parallel.expert=4")),
    (XL, (*SEQUENCE, "parallel.expert=2", "engine.reshard_after_forward=true")),
    (XL, ("parallel.tensor=2", "parallel.expert_tensor=2")),
    (THOR, (*SEQUENCE, "engine.kind=deepspeed", "engine.stage=1")),
]
Seen = tuple[list[float], torch.Tensor, float]


def train_and_translate(world: World, *overrides: str) -> Seen:
    """Losses of an update before and one after translating, the translations, and the validation loss behind them."""
    recipe, training_step = tiny_step(world, *overrides)
    data = training_step.mesh.data
    first, second, validation = (
        share_of(global_batch(recipe, step), data.rank, data.size) for step in (0, 1, 9)
    )
    losses = [mean(data, training_step.update(first, 0, False).loss)]
    translations = training_step.translator().translate(first[0], 1)
    losses.append(mean(data, training_step.update(second, 1, False).loss))
    return losses, translations, training_step.evaluate(validation, 2)


def see_all(world: World, cases: list[tuple[tuple[str, ...], ...]]) -> list[Seen]:
    return [train_and_translate(world, *model, *layout) for model, layout in cases]


def assert_translates_like_one_process(workers: int, cases: list[tuple[tuple[str, ...], ...]]) -> None:
    alone, of_ranks = World(0, 1, 0, 1, torch.device("cpu")), run_workers(workers, see_all, cases)
    for index, (model, layout) in enumerate(cases):
        losses, translations, validation = train_and_translate(alone, *model)
        assert len(translations.unique()) > 10, "all sentences have the same translation"
        assert (translations != EOS_ID).sum() > translations.numel() / 4
        tensor = int(next(each for each in layout if "tensor" in each).partition("=")[2])
        for rank, seen in enumerate(of_rank[index] for of_rank in of_ranks):
            share = translations.chunk(workers // tensor)[rank // tensor]
            assert torch.equal(seen[1], share), f"rank {rank}, {layout}"
            assert seen[0] == pytest.approx(losses, rel=2e-6)
            assert seen[2] == pytest.approx(validation, rel=2e-6)


def test_a_tensor_group_that_cuts_sequences_translates_like_one_process():
    assert_translates_like_one_process(2, ON_TWO)


@pytest.mark.distributed_exhaustive
def test_four_workers_translate_like_one_process():
    assert_translates_like_one_process(4, ON_FOUR)
