"""Encoders and encoder-decoders train on every layout like one process: two stacks, padding, uncausal routers."""

import pytest
from gloo_workers import run_workers
from layout_run import train
from test_layouts import assert_same_gradients, assert_same_run, one_process

SPANS = (
    "model.architecture=encoder_decoder",
    "objective.kind=span_corruption",
    "objective.sentinels=4",
    "model.positions=relative",
    "model.activation=gelu",
    "model.dropout=0.1",
    "moe.router.jitter=0.1",
)
MASKED = ("model.architecture=encoder", "objective.kind=masked", "model.activation=gelu", "model.dropout=0.1")
UNLIMITED = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
VARIANTS = [
    SPANS,
    (*SPANS, "moe.stacks=decoder", "model.num_encoder_layers=3", "model.tied_embeddings=false"),
    (*SPANS[:-1], "moe.stacks=encoder", "moe.router.kind=expert_choice", *UNLIMITED),
    (*MASKED, "moe.router.kind=expert_choice", *UNLIMITED),
    (*MASKED, "moe.router.kind=batch_priority", "model.positions=learned"),
    (*SPANS, "model.positions=transformer_xl"),
]
EVERY_LAYOUT = [
    (1, ("data.micro_batch=2",)),
    (2, ("parallel.expert=1",)),
    (2, ("parallel.expert=2", "moe.dispatch.kind=all_to_all")),
    (4, ("parallel.expert=2", "data.micro_batch=1", "engine.reshard_after_forward=true")),
    (4, ("parallel.expert=4",)),
]


def assert_trains_like_one_process(workers: int, variant: tuple[str, ...], *layout: str) -> None:
    runs = run_workers(workers, train, *variant, *layout)
    assert_same_gradients(one_process(variant), runs, digits=1e-5)
    assert_same_run(one_process(variant), runs, digits=2e-6)


def test_an_encoder_decoder_whose_experts_are_shared_out_trains_like_one_process():
    assert_trains_like_one_process(2, SPANS, "parallel.expert=2", "data.micro_batch=2")


@pytest.mark.distributed_exhaustive
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
@pytest.mark.parametrize(("workers", "layout"), EVERY_LAYOUT)
def test_every_model_of_stacks_trains_like_one_process(workers, layout, variant):
    assert_trains_like_one_process(workers, variant, *layout)
