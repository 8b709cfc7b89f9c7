"""Building this rank's part of a model, with one worker: everything is held, and described as the whole."""

import torch
from tiny_model import one_worker, tiny_recipe

from moe_train.config.resolve import spec_of
from moe_train.distribute.apply import distribute
from moe_train.model.build import build


def test_one_worker_holds_every_tensor_whole():
    built = distribute(spec_of(tiny_recipe()), one_worker(), seed=0)
    parameters = dict(built.model.named_parameters())
    assert built.shards.keys() == parameters.keys()
    for name, shard in built.shards.items():
        assert shard.global_shape == tuple(shard.data.shape) == tuple(parameters[name].shape)
        assert shard.offsets == (0,) * shard.data.ndim
        assert shard.data.data_ptr() == parameters[name].data_ptr()
        assert shard.is_expert == (".experts." in name)


def test_every_parameter_has_its_initial_value():
    spec = spec_of(tiny_recipe())
    whole = dict(build(spec, seed=5).named_parameters())
    for name, shard in distribute(spec, one_worker(), seed=5).shards.items():
        assert torch.equal(shard.data, whole[name]), name


def test_experts_without_replicas_keep_their_gradients_in_place():
    built = distribute(spec_of(tiny_recipe()), one_worker(), seed=0)
    assert len(built.expert_gradients) == 2
    for layer, buffers in zip(built.model.layers, built.expert_gradients, strict=True):
        gradients = [parameter.grad for parameter in layer.feedforward.experts.parameters()]
        assert all(mine is theirs for mine, theirs in zip(gradients, buffers.tensors, strict=True))
