"""Lists the keys of DeepSpeed's configuration: which a recipe may add, which it decides itself, which have no use here.

DeepSpeed takes an unknown key at the top level in silence, so `zero_optimisation` would be no ZeRO at all, and it knows
its keys only when it is imported, which takes seconds. The names are those of DeepSpeed 0.19.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from moe_train.config.fields import as_written
from moe_train.config.problem import Problem

Open = Mapping[str, "type | Open"]

OPEN: Open = {
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "log_level": str,
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "debug": bool},
    "zero_optimization": {
        "reduce_bucket_size": int,
        "allgather_bucket_size": int,
        "overlap_comm": bool,
        "use_multi_rank_bucket_allreduce": bool,
    },
}
"""Keys that a recipe may add, with the type of their value."""

DECIDED: Mapping[str, str] = {
    "train_batch_size": "data.global_batch",
    "train_micro_batch_size_per_gpu": "data.micro_batch",
    "gradient_accumulation_steps": "data.micro_batch",
    "managed_gradient_accumulation": "data.micro_batch",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "gradient_clipping": "optim.clip",
    "zero_allow_untested_optimizer": "optim.kind",
    "zero_force_ds_cpu_optimizer": "optim.kind",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "communication_data_type": "precision",
    "tensor_parallel": "parallel.tensor",
    "expert_parallel": "parallel.expert",
    "data_parallel_size": "parallel.data",
    "use_data_before_expert_parallelism": "parallel.expert",
    "checkpoint": "checkpoint",
    "wandb": "monitor.wandb",
    "tensorboard": "monitor",
    "csv_monitor": "monitor",
    "comet": "monitor",
    "zero_optimization.stage": "engine.stage",
    "zero_optimization.compute_grad_norm": "optim.clip",
}
"""Keys whose value follows from the recipe, with the key that decides it."""

_UNUSED = """
    prescale_gradients gradient_predivide_factor gradient_allreduce_op sparse_gradients disable_allgather
    seq_parallel_communication_data_type sequence_parallel_size activation_checkpointing pipeline hybrid_engine
    compression_training data_efficiency curriculum_learning autotuning elasticity eigenvalue quantize_training
    progressive_layer_drop compile aio nebula datastates_ckpt flops_profiler weight_quantization sparse_attention
    vocabulary_size dataloader_drop_last amp timers
    zero_optimization.contiguous_gradients zero_optimization.reduce_scatter zero_optimization.allgather_partitions
    zero_optimization.load_from_fp32_weights zero_optimization.elastic_checkpoint zero_optimization.offload_param
    zero_optimization.offload_optimizer zero_optimization.cpu_offload zero_optimization.cpu_offload_param
    zero_optimization.cpu_offload_use_pin_memory zero_optimization.zenflow zero_optimization.sub_group_size
    zero_optimization.ignore_unused_parameters zero_optimization.legacy_stage1
    zero_optimization.round_robin_gradients zero_optimization.parameter_alignment zero_optimization.leaf_module
    zero_optimization.zero_hpz_partition_size zero_optimization.zero_quantized_weights
    zero_optimization.zero_quantized_nontrainable_weights zero_optimization.zero_quantized_gradients
"""
UNUSED = frozenset(_UNUSED.split())
"""Keys that DeepSpeed knows and this engine neither needs nor has tried."""


def read(config: Mapping[str, Any], known: Open = OPEN) -> dict[str, Any]:
    """Returns the values of a sound `config` in the types of their keys."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        declared = known[name]
        values[name] = read(value, declared) if isinstance(declared, Mapping) else _typed(value, declared)
    return values


def key_problems(config: Mapping[str, Any], prefix: str = "", known: Open = OPEN) -> Iterator[Problem]:
    """Yields what is wrong with the keys and values of `engine.config`."""
    for name, value in config.items():
        key, declared = f"{prefix}{name}", known.get(name)
        if isinstance(declared, Mapping) and isinstance(value, Mapping):
            yield from key_problems(value, f"{key}.", declared)
        elif declared is None:
            yield _refusal(key, value)
        elif isinstance(declared, Mapping) or _typed(value, declared) is None:
            way_out = "correct it, or leave it out for DeepSpeed's default"
            yield _problem(key, value, f"must be {_in_words(declared)}", way_out)


def _refusal(key: str, value: Any) -> Problem:
    if key in DECIDED:
        return _problem(key, value, f"is decided by {DECIDED[key]}", f"set {DECIDED[key]} and leave it out")
    if key in UNUSED:
        return _problem(key, value, "is a key of DeepSpeed's that this engine has no use for", "leave it out")
    section = key.rpartition(".")[0]
    beside = [name for name in (*names_of(OPEN), *DECIDED, *UNUSED) if name.rpartition(".")[0] == section]
    nearest = difflib.get_close_matches(key, beside, n=1)
    way_out = f"did you mean {nearest[0]}? Otherwise leave it out" if nearest else "leave it out"
    return _problem(key, value, "is not a key of DeepSpeed's", way_out)


def _problem(key: str, value: Any, rule: str, way_out: str) -> Problem:
    return Problem(f"engine.config.{key}", as_written(value), rule, way_out)


def names_of(known: Open, prefix: str = "") -> Iterator[str]:
    """Yields the keys of a table, and those of its sections with the section before them."""
    for name, declared in known.items():
        yield f"{prefix}{name}"
        if isinstance(declared, Mapping):
            yield from names_of(declared, f"{prefix}{name}.")


def _typed(value: Any, declared: Any) -> Any:
    """Returns a value of the declared type; None if the text is of none such."""
    text = as_written(value)
    if declared is bool:
        return {"true": True, "false": False}.get(text.lower())
    if declared is int:
        try:
            number = float(text)
        except ValueError:
            return None
        return int(number) if number.is_integer() and number >= 0 else None
    return text if isinstance(value, str) else None


def _in_words(declared: Any) -> str:
    if isinstance(declared, Mapping):
        return f"a section with keys among {', '.join(declared)}"
    return {bool: "true or false", int: "a whole number of at least 0"}.get(declared, "text")
