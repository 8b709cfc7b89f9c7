"""The rules of `engine.kind=deepspeed`: each broken once, without importing DeepSpeed; and the file made for it."""

import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from tiny_model import tiny_recipe

from moe_train.config.check import problems
from moe_train.config.kinds.deepspeed_keys import DECIDED, OPEN, UNUSED, names_of
from moe_train.errors import RecipeError

DEEPSPEED = "engine.kind=deepspeed"
BROKEN = [
    ("engine.stage=3", "engine.stage=3: cuts weights too, which DeepSpeed does not do with experts; use"),
    ("parallel.shard=1", "parallel.shard=1: shards in groups, but ZeRO cuts over all workers that hold"),
    ("engine.stage=4", "engine.stage=4: is not a stage of ZeRO; use 0, 1 or 2."),
    (
        "engine.config={zero_optimisation: {stage: 1}}",
        "engine.config.zero_optimisation={stage: 1}: is not a key of DeepSpeed's; did you mean zero_optimization?",
    ),
    ("engine.config.gradient_cliping=1", "is not a key of DeepSpeed's; did you mean gradient_clipping?"),
    (
        "engine.config.zero_optimization.reduce_buckets=5",
        "did you mean zero_optimization.reduce_bucket_size?",
    ),
    (
        "engine.config.nothing_alike=5",
        "engine.config.nothing_alike=5: is not a key of DeepSpeed's; leave it out.",
    ),
    (
        "engine.config.optimizer={type: Adam}",
        "engine.config.optimizer={type: Adam}: is decided by optim; set optim and leave it out.",
    ),
    ("engine.config.gradient_clipping=1", "is decided by optim.clip; set optim.clip and leave it out."),
    ("engine.config.zero_optimization.stage=2", "is decided by engine.stage; set engine.stage and"),
    ("engine.config.bf16={enabled: true}", "is decided by precision"),
    (
        "engine.config.zero_optimization.offload_optimizer={device: cpu}",
        "is a key of DeepSpeed's that this engine has no use for; leave it out.",
    ),
    (
        "engine.config.steps_per_print=often",
        "engine.config.steps_per_print=often: must be a whole number of at least 0; correct it, or leave it out",
    ),
    ("engine.config.dump_state=2", "engine.config.dump_state=2: must be true or false"),
    ("engine.config.log_level=[1]", "engine.config.log_level=[1]: must be text"),
    ("engine.config.zero_optimization=1", "must be a section with keys among reduce_bucket_size,"),
    ("engine.config.steps_per_print={a: 1}", "engine.config.steps_per_print={a: 1}: must be a whole number"),
]


def found(*overrides: str) -> str:
    return "\n".join(map(str, problems(tiny_recipe(DEEPSPEED, *overrides), workers=2)))


@pytest.mark.parametrize(("override", "message"), BROKEN)
def test_each_mistake_is_found(override, message):
    assert message in found(override)


def test_nothing_is_wrong_with_the_engine_alone_and_with_keys_of_deepspeeds_that_are_known():
    assert found() == ""
    assert found("parallel.expert_tensor=2") == ""
    assert found("parallel.tensor=2") == ""
    assert found("engine.config={steps_per_print: 10, zero_optimization: {overlap_comm: true}}") == ""


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_adafactor_needs_whole_matrices(stage):
    message = "hands the optimizer ranges of flattened weights, but optim.kind=adafactor needs their rows"
    assert (message in found(f"engine.stage={stage}", "optim.kind=adafactor")) == (stage > 0)


def test_zero_cuts_experts_of_any_width_and_fsdp2_does_not():
    odd = ("data.global_batch=9", "moe.d_ff=41")
    assert not problems(tiny_recipe(DEEPSPEED, *odd), workers=3)
    (problem, other) = problems(tiny_recipe(*odd), workers=3)
    assert "so 3 must divide model.d_model=32" in str(problem)
    assert "so 3 must divide moe.d_ff=41" in str(other)


def test_a_value_in_place_of_the_mapping_is_refused():
    with pytest.raises(
        RecipeError, match=re.escape("engine.config=5: must be a mapping, such as {key: value}")
    ):
        tiny_recipe(DEEPSPEED, "engine.config=5")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (
        "engine.kind=deepspeed: needs the package deepspeed, which is not installed; install it with "
        "pip install 'deepspeed>=0.19.8,<0.20', or use engine.kind=native." in found()
    )
    assert "megatron" not in found()
    assert (
        "parallel.tensor=2: needs the package megatron-core, which is not installed; install it with "
        "pip install 'megatron-core>=0.16.1,<0.17', or use parallel.tensor=1, or engine.kind=native."
        in found("parallel.tensor=2")
    )


def test_another_version_is_refused_with_both(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.21.0")
    assert "needs version 0.19.x of the package deepspeed, but 0.21.0 is installed" in found()
    assert "needs version 0.16.x of the package megatron-core, but 0.21.0 is installed" in found(
        "parallel.tensor=2"
    )


def test_every_listed_key_is_one_of_deepspeeds():
    """In its source, which is not imported: that takes seconds."""
    places = importlib.util.find_spec("deepspeed").submodule_search_locations
    files = [
        path
        for path in Path(places[0]).rglob("*.py")
        if path.name in ("config.py", "constants.py", "__init__.py")
    ]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for key in (*names_of(OPEN), *DECIDED, *UNUSED):
        leaf = key.rpartition(".")[2]
        assert re.search(rf"""["']{leaf}["']|^\s+{leaf}: """, source, re.MULTILINE), key


def test_the_file_for_deepspeed_follows_from_the_recipe():
    recipe = tiny_recipe(
        DEEPSPEED,
        "engine.stage=2",
        "data.micro_batch=2",
        "engine.config={wall_clock_breakdown: true, zero_optimization: {reduce_bucket_size: 1e6}}",
    )
    assert "deepspeed" not in sys.modules
    written = recipe.engine.files(recipe, data=2)
    assert json.loads(written["deepspeed.json"]) == {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "compute_grad_norm": False,
            "reduce_bucket_size": 1_000_000,
        },
        "zero_allow_untested_optimizer": True,
        "log_level": "error",
        "wall_clock_breakdown": True,
    }
