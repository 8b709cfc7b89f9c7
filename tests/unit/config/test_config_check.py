"""Every rule of a recipe, broken once, and said with its key, value, rule and way out."""

import pytest
from tiny_model import tiny_recipe

from moe_train.config.bounds import bounded_fields
from moe_train.config.check import problems, require_sound
from moe_train.config.resolve import spec_of
from moe_train.config.schema import Recipe
from moe_train.errors import LayoutError, RecipeError

BOUNDS = {key: bound for key, _, bound in bounded_fields(Recipe())}


def beyond(key: str) -> tuple[str, None, str]:
    """The largest whole number outside of a field's range, and what is said of it."""
    bound = BOUNDS[key]
    value = bound.lowest - bound.is_allowed
    rule = f"must be at least {bound.lowest}" if bound.is_allowed else f"must be above {bound.lowest}"
    return f"{key}={value}", None, f": {rule}; set {key}"


BROKEN = [
    *(beyond(key) for key in BOUNDS),
    ("moe.num_experts=0", None, "moe.num_experts=0: must be at least 1; set moe.num_experts=1 or more."),
    ("stability.skip_limit=0", None, "stability.skip_limit=0: must be at least 1; its default is 10."),
    ("stability.spike_window=1", None, "stability.spike_window=1: must be at least 2"),
    ("stability.spike_patience=0", None, "stability.spike_patience=0: must be at least 1"),
    ("stability.spike_threshold=0", None, "stability.spike_threshold=0.0: must be above 0"),
    ("stability.rollback_margin=-1", None, "stability.rollback_margin=-1: must be at least 0"),
    ("stability.rollback_limit=0", None, "stability.rollback_limit=0: must be at least 1"),
    ("moe.every=-1", None, "moe.every=-1: must be at least 0"),
    ("data.validation_fraction=1", None, "data.validation_fraction=1.0: must be between 0 and 1"),
    ("model.dropout=1", None, "model.dropout=1.0: must be in [0, 1)"),
    ("model.init_scale=0", None, "model.init_scale=0.0: must be above 0"),
    (
        "job.hang_s=2",
        None,
        "job.hang_s=2.0: must be at least 5, since workers send a heartbeat every second, and",
    ),
    (
        "job.hang_s=301",
        None,
        "at most job.timeout_s=300, after which a collective fails and the hanging rank is unknown",
    ),
    ("name=a/b", None, "name='a/b': must be a valid folder name"),
    (
        "model.num_heads=3",
        None,
        "model.num_heads=3: must divide model.d_model=32; choose one of 1, 2, 4, 8, 16, 32, or set "
        "model.head_width.",
    ),
    ("model.num_heads=32", None, "must give an even head width for rotary positions, not 1"),
    (
        "model.head_width=5",
        None,
        "model.head_width=5: must give an even head width for rotary positions, not 5",
    ),
    ("moe.dense_first=2", None, "moe.dense_first=2: leaves no MoE layer among model.num_layers=2 with"),
    ("moe.dense_first=-1", None, "moe.dense_first=-1: must be at least 0"),
    ("moe.every=3", None, "moe.every=3: is above model.num_layers=2, so no layer would be an MoE layer"),
    ("moe.router.jitter=1", None, "moe.router.jitter=1.0: must be in [0, 1)"),
    ("moe.router.input_dropout=1", None, "moe.router.input_dropout=1.0: must be in [0, 1)"),
    ("data.tokenizer.vocab_size=100", None, "must be at least 258 for the 256 bytes and 2 special tokens"),
    ("optim.lr=0", None, "optim.lr=0.0: must be above 0"),
    ("optim.clip=0", None, "optim.clip=0.0: must be above 0"),
    ("optim.schedule.warmup_steps=-1", None, "optim.schedule.warmup_steps=-1: must be at least 0"),
    ("data.corpus.kind=huggingface", None, "data.corpus.path='': must name a data set or a folder"),
    (
        "parallel.data=4",
        2,
        "parallel.data=4: must equal the number of workers, which is 2; run with --workers 4",
    ),
    (
        "parallel.expert=3",
        4,
        "parallel.expert=3: must divide the number of workers, which is 4; choose one of 1, 2, 4",
    ),
    (
        "parallel.expert=2",
        1,
        "parallel.expert=2: must divide the number of workers, which is 1; use 1, or run with --workers 2",
    ),
    (
        "data.global_batch=6",
        4,
        "data.global_batch=6: must be a multiple of the 4 data-parallel workers; use 4 or 8.",
    ),
    ("data.micro_batch=3", 2, "data.micro_batch=3: must divide a worker's share of the batch, 8 / 2 = 4"),
    ("moe.group_sequences=3", 2, "moe.group_sequences=3: must divide the 4 sequences of one forward pass"),
    (
        "data.validation_sequences=1",
        2,
        "data.validation_sequences=1: must be at least moe.group_sequences (1) x 2 data-parallel workers = 2; "
        "use 2 or more.",
    ),
]


def test_every_field_that_counts_something_has_a_bound():
    assert len(BOUNDS) == 35


@pytest.mark.parametrize(("override", "workers", "sentence"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_broken_rule_is_said(override, workers, sentence):
    found = [str(problem) for problem in problems(tiny_recipe(override), workers)]
    assert any(sentence in problem for problem in found), found


@pytest.mark.parametrize(
    ("overrides", "workers", "sentence"),
    [
        (
            ("moe.router.kind=top_k", "moe.router.k=9"),
            None,
            "moe.router.k=9: must be between 1 and moe.num_experts=8; set moe.router.k to at most 8",
        ),
        (
            ("moe.router.kind=top_k", "moe.router.k=1"),
            None,
            "moe.router.normalize=true: must be false with moe.router.k=1, or every weight is 1",
        ),
        (
            ("moe.router.kind=top_k", "moe.router.jitter=-1"),
            None,
            "moe.router.jitter=-1.0: must be in [0, 1)",
        ),
        (
            ("moe.num_experts=6", "parallel.expert=4"),
            4,
            "parallel.expert=4: must divide moe.num_experts=6; choose one of 1, 2, 3, 6.",
        ),
        (
            ("moe.dispatch.kind=local", "parallel.expert=2"),
            2,
            "moe.dispatch.kind=local: reaches only a worker's own experts, but parallel.expert=2 distributes",
        ),
        (
            ("moe.dispatch.kind=hierarchical", "moe.dispatch.ranks_per_host=3", "parallel.expert=4"),
            4,
            "moe.dispatch.ranks_per_host=3: must divide parallel.expert=4; choose one of its divisors, or null",
        ),
        (
            ("model.d_model=30", "model.num_heads=1", "parallel.expert=2"),
            8,
            "makes 4 workers shard each expert, so 4 must divide model.d_model=30",
        ),
        (
            ("stability.rollback=true", "checkpoint.every=0"),
            None,
            "stability.rollback=true: needs checkpoints to go back to, but checkpoint.every=0 writes none",
        ),
        (
            ("stability.rollback=true", "checkpoint.every=12", "checkpoint.keep_last=2"),
            None,
            "checkpoint.keep_last=2: may leave none that is stability.rollback_margin=10 updates older than the first "
            "of 3 bad ones in a row, with checkpoint.every=12; set checkpoint.keep_last=3 or more",
        ),
        (
            ("moe.every=0", "parallel.tensor=4"),
            4,
            "parallel.tensor=4: must divide model.num_heads=2; choose one of 1, 2.",
        ),
        (
            ("moe.every=0", "model.d_ff=49", "parallel.tensor=2"),
            2,
            "parallel.tensor=2: must divide model.d_ff=49; use 1.",
        ),
        (
            ("moe.every=0", "data.sequence_length=15", "parallel.tensor=2", "parallel.sequence=true"),
            2,
            "parallel.tensor=2: must divide the decoder's sequence length of 15; use 1.",
        ),
        (
            ("parallel.sequence=true",),
            2,
            "parallel.sequence=true: cuts sequences over the workers of a tensor group, of which parallel.tensor=1 "
            "leaves one; set parallel.tensor=2 or more, or parallel.sequence=false.",
        ),
        (
            ("moe.d_ff=42", "parallel.expert=2"),
            8,
            "makes 4 workers shard each expert, so 4 must divide moe.d_ff=42",
        ),
        (
            ("parallel.expert_tensor=3",),
            3,
            "parallel.expert_tensor=3: must divide moe.d_ff=40; choose one of 1, 2, 4, 5, 8, 10, 20, 40",
        ),
        (
            ("parallel.expert_tensor=2", "moe.d_ff=20"),
            16,
            "makes 8 workers shard each expert, so 8 must divide moe.d_ff=20 / parallel.expert_tensor=2; choose "
            "parallel.expert=4 or 8, a width",
        ),
        (
            ("moe.d_ff=20", "moe.num_experts=5"),
            8,
            "makes 8 workers shard each expert, so 8 must divide moe.d_ff=20; choose a width that 8 divides, or",
        ),
        (
            ("moe.dispatch.kind=local", "parallel.expert_tensor=2"),
            2,
            "reaches only a worker's own experts, but parallel.expert * parallel.expert_tensor=1 * 2=2 distributes",
        ),
        (
            ("parallel.shard=3",),
            8,
            "parallel.shard=3: must divide the data-parallel workers, which are 8; choose one of 1, 2, 4, 8, or null",
        ),
        (
            ("parallel.shard=2", "parallel.expert=3", "moe.num_experts=6"),
            None,
            "parallel.shard=2: must divide the 3 workers that hold a set of experts together, or be a multiple "
            "of them; set parallel.shard=3, or null",
        ),
        (
            ("engine.offload=true",),
            1,
            "engine.offload=true: is done by FSDP2, which needs at least 2 data-parallel workers; run with more",
        ),
        (
            ("engine.gather_dtype=bf16",),
            None,
            "engine.gather_dtype=bf16: needs matrix products in bf16, but precision=fp32; set precision=bf16, or",
        ),
        (
            (
                "moe.dispatch.kind=one_sided",
                "moe.dispatch.num_slabs=9",
                "job.device=cuda",
                "parallel.expert=2",
            ),
            2,
            "moe.dispatch.num_slabs=9: must be at least 10, which the MoE layers hold at once; set "
            "moe.dispatch.num_slabs=10, or engine.recompute=block, with which they need 8.",
        ),
        (
            ("engine.recompute=experts", "moe.every=0"),
            None,
            "engine.recompute=experts: applies to MoE layers, and the model has none; choose attention or block",
        ),
        (
            ("engine.overlap=halves", "moe.every=0"),
            None,
            "engine.overlap=halves: applies to MoE layers, and the model has none; set engine.overlap=none",
        ),
        (
            ("engine.overlap=halves",),
            2,
            "engine.overlap=halves: overlaps the exchange of rows with computing, but with parallel.expert=1 every "
            "worker holds all experts, and no row travels; use parallel.expert=2 or more, or engine.overlap=none",
        ),
        (
            ("engine.overlap=halves", "parallel.expert=2", "moe.dispatch.kind=one_sided"),
            2,
            "but moe.dispatch.kind=one_sided makes its own, for which the worker waits; use "
            "moe.dispatch.kind=all_to_all (or auto), or engine.overlap=none",
        ),
        (
            ("engine.overlap=halves", "parallel.expert=2", "moe.router.kind=smear"),
            2,
            "but the layer of moe.router.kind=smear exchanges no rows; set engine.overlap=none",
        ),
        (
            ("engine.overlap=shared", "parallel.expert=2"),
            2,
            "engine.overlap=shared: runs shared experts while rows travel, but moe.shared_experts=0; use "
            "engine.overlap=halves, or engine.overlap=none",
        ),
    ],
)
def test_a_rule_between_several_keys_is_said(overrides, workers, sentence):
    found = [str(problem) for problem in problems(tiny_recipe(*overrides), workers)]
    assert any(sentence in problem for problem in found), found


@pytest.mark.parametrize(("workers", "expert"), [(None, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 8)])
def test_a_sound_recipe_has_no_problem(workers, expert):
    assert problems(tiny_recipe(f"parallel.expert={expert}"), workers) == []


@pytest.mark.parametrize("engine", ["native", "deepspeed"])
def test_overlap_leaves_the_choice_of_dispatcher_no_choice(engine):
    recipe = tiny_recipe(f"engine.kind={engine}", "engine.overlap=halves", "parallel.expert=2")
    assert problems(recipe, 2) == []
    assert {layer.dispatch.kind for layer in spec_of(recipe).moe} == {"all_to_all"}
    assert {layer.dispatch.kind for layer in spec_of(tiny_recipe("parallel.expert=2")).moe} == {"auto"}


def test_a_tensor_group_need_not_divide_the_vocabulary():
    assert problems(tiny_recipe("moe.every=0", "data.tokenizer.vocab_size=301", "parallel.tensor=2"), 4) == []


def test_a_dense_model_is_not_asked_about_experts():
    assert problems(tiny_recipe("moe.every=0", "moe.router.kind=top_k", "moe.router.k=9"), 3 - 1) == []


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        require_sound(tiny_recipe("steps=0", "optim.lr=-1", "model.num_heads=3"))
    assert len(str(caught.value).splitlines()) == 3


def test_problems_of_the_layout_alone_are_a_layout_error():
    with pytest.raises(LayoutError):
        require_sound(tiny_recipe("parallel.expert=3"), 4)
    require_sound(tiny_recipe(), 4)


def test_slabs_of_what_runs_again_do_not_grow_with_the_layers():
    few = (
        "moe.dispatch.kind=one_sided",
        "moe.dispatch.num_slabs=8",
        "job.device=cuda",
        "model.num_layers=40",
    )
    for parts in ("experts", "block"):
        assert problems(tiny_recipe(*few, f"engine.recompute={parts}")) == []
    assert len(problems(tiny_recipe(*few, "engine.recompute=attention"))) == 1
