"""The formula of parameters and FLOPs against the model itself."""

import pytest
import torch
from tiny_model import context, flops_per_token, global_batch, tiny_recipe, tiny_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_train.config.resolve import spec_of
from moe_train.model.count import RELATIVE_BUCKETS, count
from moe_train.model.transformer import build_on_meta
from moe_train.model.transformer_xl import DistanceScores

SPANS = ("model.architecture=encoder_decoder", "objective.kind=span_corruption", "objective.sentinels=4")
SHAPES = [
    (),
    ("moe.shared_experts=2", "model.activation=geglu"),
    ("model.activation=gelu", "model.positions=learned"),
    ("model.activation=swiglu", "model.positions=relative", "model.tied_embeddings=false"),
    ("moe.every=0",),
    ("model.positions=transformer_xl", "model.head_width=12"),
    (*SPANS, "model.positions=transformer_xl", "model.num_encoder_layers=3"),
    (
        "model.num_layers=4",
        "moe.layers=[0,2,3]",
        "moe.num_experts=[1,4,8]",
        "moe.router.kind=top_k",
        "moe.router.k=1",
        "moe.router.normalize=false",
    ),
    (
        "model.num_layers=4",
        "moe.every=3",
        "moe.first=0",
        "moe.num_experts=[2,6]",
        "moe.router.kind=noisy_top_k",
    ),
    ("model.head_width=12", "moe.activation=swiglu", "moe.shared_experts=1"),
    ("model.activation=geglu", "moe.activation=gelu", "moe.dense_first=1", "moe.every=1"),
    ("moe.every=0", "model.activation=swiglu", "model.d_ff=null"),
    ("moe.every=2", "moe.router.kind=top_k", "moe.router.k=3", "model.num_layers=3"),
    ("moe.d_ff=null", "model.d_ff=24", "moe.num_experts=2", "moe.router.kind=top_k", "moe.router.k=2"),
    ("model.architecture=encoder", "objective.kind=masked", "model.positions=relative"),
    (*SPANS, "model.positions=relative", "model.num_encoder_layers=3", "moe.every=2"),
    (
        *SPANS,
        "model.positions=learned",
        "model.head_width=12",
        "moe.stacks=encoder",
        "model.tied_embeddings=false",
    ),
]


@pytest.mark.parametrize("overrides", SHAPES, ids=" ".join)
def test_the_formula_counts_the_parameters_of_the_model(overrides):
    recipe = tiny_recipe(*overrides)
    spec = spec_of(recipe)
    counted, held = count(spec), dict(build_on_meta(spec).named_parameters())
    assert counted.total_parameters == sum(parameter.numel() for parameter in held.values())
    assert counted.parts["experts"] == sum(p.numel() for name, p in held.items() if ".experts." in name)
    assert counted.parts["router"] == sum(p.numel() for name, p in held.items() if ".router." in name)
    assert counted.parts["norms"] == sum(p.numel() for name, p in held.items() if "norm" in name)


@pytest.mark.parametrize("overrides", SHAPES, ids=" ".join)
def test_the_formula_counts_the_flops_of_a_training_step(overrides):
    recipe = tiny_recipe(*overrides, "moe.capacity_factor=null")
    model, batch = tiny_transformer(recipe).train(), global_batch(recipe, 0)
    # Plain attention, because the fused kernels recompute products, which the formula leaves out.
    # torch's counter does not know the in-place form of a product.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_flops})
    with counter, sdpa_kernel(SDPBackend.MATH):
        read = [tokens for tokens in (batch.tokens, batch.source) if tokens is not None]
        arguments = [part for tokens in read for part in (tokens, context(*tokens.shape, training=True))]
        logits = model(*arguments).logits.values
        logits.sum().backward()
    tokens = recipe.data.global_batch * recipe.data.sequence_length
    # Made once for all sequences, forward and for the matrix's gradient: the formula leaves it out.
    of_distances = sum(
        2 * 2 * (length if module.is_causal else 2 * length - 1) * module.project.weight.numel()
        for stack, length in stacks_of(model, batch)
        for module in stack.modules()
        if isinstance(module, DistanceScores)
    )
    assert (counter.get_total_flops() - of_distances) // tokens == flops_per_token(recipe)


def stacks_of(model, batch):
    """Each stack with the length of its sequences."""
    if batch.source is None:
        return [(model, batch.tokens.shape[1])]
    return [(model.encoder, batch.source.shape[1]), (model.decoder, batch.tokens.shape[1])]


def product_flops(_, left, right, out_shape, **__):
    """2 FLOPs for each multiplication of a matrix product; arguments are shapes."""
    return 2 * left[0] * left[1] * right[1]


def test_counts_by_hand():
    counted = count(spec_of(tiny_recipe()))
    # 2 layers of width 32; 8 experts of 2 * 32 * 40 each; vocabulary 300, tied.
    assert dict(counted.parts) == {
        "embedding": 9600,
        "head": 0,
        "positions": 0,
        "attention": 8192,
        "norms": 160,
        "feed_forward": 0,
        "router": 512,
        "shared_experts": 0,
        "experts": 40960,
    }
    assert counted.total_parameters == 59424
    assert counted.active_parameters == 59424 - 40960 * 7 // 8
    # attention 8192, router 512, an expert of 2560 a layer, head 9600; scores 4 * 16 * 32 * 2
    assert counted.flops_per_token(window=16) == 3 * (2 * (8192 + 512 + 5120 + 9600) + 4096)


def test_the_formula_and_the_model_have_the_same_number_of_relative_buckets():
    from moe_train.model.attention import NUM_BUCKETS

    assert RELATIVE_BUCKETS == NUM_BUCKETS


def test_more_experts_cost_parameters_but_no_flops_beyond_the_router():
    few, many = (count(spec_of(tiny_recipe(f"moe.num_experts={number}"))) for number in (8, 16))
    assert many.total_parameters - few.total_parameters == 40960 + 512
    assert many.flops_per_token(16) - few.flops_per_token(16) == 3 * 2 * 512


def test_a_model_on_the_meta_device_holds_no_bytes():
    model = build_on_meta(spec_of(tiny_recipe()))
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())
