"""Divides parameters into the two groups of every optimizer: weight decay acts on matrices, not on norms."""

from collections.abc import Mapping

from moe_train.checkpoint.layout import Shard


def groups_by_decay(shards: Mapping[str, Shard], weight_decay: float) -> list[dict[str, object]]:
    """Returns this rank's local tensors as torch's parameter groups; a group without any is left out."""
    tensors = [shard.data for shard in shards.values()]
    matrices = [data for data in tensors if data.ndim > 1]
    others = [data for data in tensors if data.ndim <= 1]
    groups = ({"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
