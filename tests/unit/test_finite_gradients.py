"""No derivative is infinite times zero: extreme logits and rows of zeros give finite values and finite gradients.

Every kind of router, every auxiliary loss, every objective, every norm and every optimizer is driven by logits so far
apart that probabilities underflow in fp32 (beyond about 104), by rows that are all alike, and by rows of zeros. Where
a value has a formula, it and its gradient are those of the formula written out in float64.
T tokens, E experts.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from tiny_model import (
    TOKENS,
    context,
    global_batch,
    normal,
    one_worker,
    tiny_recipe,
    tiny_transformer,
    vocabulary_of,
)
from torch import Tensor

from moe_train.checkpoint.layout import Shard
from moe_train.config.registry import REGISTRY, build
from moe_train.data.batch import IGNORED, Batch
from moe_train.model.logits import Logits
from moe_train.moe import losses
from moe_train.moe.policy import rewarded
from moe_train.moe.routing import Routing, TableRouter
from moe_train.optim.norm import squared_norm
from moe_train.random import generator_for
from moe_train.results import MoEStats

EXPERTS, SEQUENCES, LENGTH = 8, 2, 8
GAPS = [0.0, 30.0, 104.0, 200.0, 1e4]
OFFSETS = [0.0, -200.0, 1e4]
ROWS = ["one of each", "all alike", "zeros"]
OPTIONS = {
    "switch": [{"policy": "sampling"}, {"reroutes": 3}],
    "top_k": [{"k": EXPERTS}, {"normalize": False}],
    "gshard": [{"second_expert": "sampling"}, {"normalize_after_limit": True}],
    "deepseek": [{"scores": "softmax"}, {"normalize": False}, {"num_groups": 2, "balance_coefficient": 1.0}],
    "dense_to_sparse": [{"gate": "gumbel", "temperature_start": 1e-2, "temperature_end": 1e-2}],
    "reinforce": [{"entropy_coefficient": 0.1}],
    "batch_priority": [{"noise": 0.0}, {"balance_coefficient": 1.0}],
    "dselect_k": [{"balance_coefficient": 1.0}],
}
ROUTERS = [
    (kind, option) for kind in sorted(REGISTRY["moe.router"]) for option in ({}, *OPTIONS.get(kind, ()))
]


def logits_of(gap: float, offset: float, rows: int = EXPERTS) -> Tensor:
    """Rows that fall by `gap` from one expert to another one, each with a best expert of its own."""
    falling = offset - torch.linspace(0, gap, EXPERTS)
    return torch.stack([falling.roll(row) for row in range(rows)])


def router(kind: str, options: dict, table: Tensor):
    """A router all of whose matrices give the i-th one-hot row the i-th row of `table`, again and again if wider."""
    config = REGISTRY["moe.router"][kind].config(**options)
    made = build("moe.router", config, d_model=EXPERTS, num_experts=EXPERTS, group=1, site="layers.0.router")
    for parameter in made.parameters():
        repeats = -(-parameter.shape[-1] // EXPERTS)
        wide = table.repeat(1, repeats)[:, : parameter.shape[-1]]
        parameter.data.copy_(wide if parameter.ndim == 2 else torch.ones_like(parameter))
    if isinstance(made, TableRouter):
        made.table = made.make_table(vocabulary_of(TOKENS), generator_for(0, "table"))
    return made


def rows_of(kind: str) -> Tensor:
    rows = torch.eye(EXPERTS).repeat(SEQUENCES * LENGTH // EXPERTS, 1)
    return {"one of each": rows, "all alike": rows[:1].repeat(len(rows), 1), "zeros": rows * 0}[kind]


def outputs_of(made, x: Tensor, training: bool) -> dict[str, Tensor]:
    """All that is differentiated of a router's results, and what is shown of them."""
    out = made(x, context(SEQUENCES, LENGTH, training, step=3))
    if not isinstance(out, Routing):
        return {f"part {i}": part for i, part in enumerate((*out[:-1], *out.figures))}
    stats = MoEStats({}, dict(out.losses), dict(out.coefficients), out.policy)
    shown = {} if out.figures is None else out.figures._asdict()
    return {
        "weights": out.weights,
        **rewarded(stats, torch.linspace(0, 9, len(x))).losses,
        **{f"shown {name}": value for name, value in shown.items()},
    }


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize(("kind", "options"), ROUTERS, ids=str)
def test_a_router_has_finite_results_and_gradients_however_far_apart_its_logits_are(kind, options, gap):
    for offset, rows, training in itertools.product(OFFSETS, ROWS, (True, False)):
        made, x = router(kind, options, logits_of(gap, offset)), rows_of(rows).requires_grad_()
        outputs = outputs_of(made, x, training)
        where = f"offset {offset}, rows {rows}, training {training}"
        assert [name for name, value in outputs.items() if not value.isfinite().all()] == [], where
        total = sum(
            (value * torch.linspace(1, 2, value.numel()).view_as(value)).sum() for value in outputs.values()
        )
        if total.requires_grad:
            total.backward()
        parameters = [*made.named_parameters(), ("x", x)]
        infinite = [
            name for name, each in parameters if each.grad is not None and not each.grad.isfinite().all()
        ]
        assert infinite == [], where


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def first_choices(logits: Tensor) -> Tensor:
    return logits.argmax(1, keepdim=True)


def written_out_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """H = -sum p ln p over rows, and dH/dz_i = -p_i (ln p_i + H), where 0 ln 0 is 0."""
    log_p = logits - logits.amax(1, keepdim=True)
    log_p = log_p - log_p.exp().sum(1, keepdim=True).log()
    p = log_p.exp()
    entropy = -(p * log_p).sum(1, keepdim=True)
    return entropy.mean(), -p * (log_p + entropy) / len(logits)


def written_out_z(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(ln sum_i exp z_i)^2, and 2 lse p."""
    lse = logits.logsumexp(1, keepdim=True)
    return lse.square().mean(), 2 * lse * (logits - lse).exp() / len(logits)


def written_out_balance(logits: Tensor) -> tuple[Tensor, Tensor]:
    """E sum_i f_i P_i of one group, and E p_i (f_i - sum_j f_j p_j) / T."""
    p = (logits - logits.logsumexp(1, keepdim=True)).exp()
    f = torch.bincount(logits.argmax(1), minlength=EXPERTS) / len(logits)
    value = EXPERTS * (f * p.mean(0)).sum()
    return value, EXPERTS * p * (f - (p * f).sum(1, keepdim=True)) / len(logits)


def written_out_cv(logits: Tensor) -> tuple[Tensor, Tensor]:
    """var / mean^2 of the experts' summed p: their mean is T / E whatever the logits are."""
    p = (logits - logits.logsumexp(1, keepdim=True)).exp()
    totals, mean = p.sum(0), len(logits) / EXPERTS
    slope = 2 * (totals - mean) / EXPERTS / mean**2
    return (totals - mean).square().mean() / mean**2, p * (slope - (p * slope).sum(1, keepdim=True))


Formula = Callable[[Tensor], tuple[Tensor, Tensor]]
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Formula]] = {
    "entropy": (lambda z: losses.entropies(z.log_softmax(1)).mean(), written_out_entropy),
    "z": (losses.z_loss, written_out_z),
    "balance": (
        lambda z: losses.balance_loss(probabilities(z), first_choices(z), losses.TokenSets(None)).value,
        written_out_balance,
    ),
    "active balance": (
        lambda z: (
            losses.active_balance_loss(
                probabilities(z),
                torch.zeros_like(z).scatter(1, first_choices(z), 1).bool(),
                losses.TokenSets(None),
            ).value
        ),
        written_out_balance,
    ),
    "cv squared": (lambda z: losses.cv_squared(probabilities(z).sum(0, keepdim=True)), written_out_cv),
}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_its_formula_in_float64(name, rows, gap):
    loss, formula = LOSSES[name]
    logits = (rows_of(rows) @ logits_of(gap, 0.0))[: EXPERTS - 1].requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    expected, slope = formula(logits.detach().double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)


def test_every_loss_of_the_module_is_among_those_held_against_a_formula():
    named = {name for name in vars(losses) if name.endswith("_loss") or name in ("cv_squared", "entropies")}
    assert named == {"balance_loss", "z_loss", "active_balance_loss", "cv_squared", "entropies"}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("kind", sorted(REGISTRY["objective"]))
def test_an_objective_has_a_finite_loss_and_gradient_however_far_apart_its_logits_are(kind, gap):
    config = REGISTRY["objective"][kind].config()
    objective = build("objective", config)
    passes = [logits_of(gap, 0.0).roll(turn, 0)[None].requires_grad_() for turn in range(config.num_passes)]
    targets = torch.arange(EXPERTS).flip(0)
    targets[-1] = IGNORED
    tokens = torch.zeros(1, EXPERTS, dtype=torch.int64)
    batch = Batch(
        tokens, targets[None], torch.zeros(1, dtype=torch.int64), targets_per_sequence=EXPERTS - 1.0
    )
    loss = objective.training_loss([Logits.whole(each) for each in passes], batch)
    log_p = [logits_of(gap, 0.0).roll(turn, 0).double().log_softmax(1)[:-1] for turn in range(len(passes))]
    task = -torch.stack([of_one.gather(1, targets[:-1, None]) for of_one in log_p]).mean()
    torch.testing.assert_close(loss.task.double(), task)
    if "consistency" in loss.parts:
        first, second = log_p
        divergence = ((first.exp() - second.exp()) * (first - second)).sum(1).mean() / 2
        torch.testing.assert_close(loss.parts["consistency"].double(), divergence)
    for gradient in torch.autograd.grad(loss.total, passes):
        assert gradient.isfinite().all()
        assert not gradient[0, -1].any(), "nothing is predicted there"


@pytest.mark.parametrize("positions", ["rotary", "learned", "relative", "transformer_xl"])
@pytest.mark.parametrize("kind", ["switch", "soft", "smear"])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_norms_attention_and_experts_have_finite_gradients_at_rows_of_zeros_and_at_huge_ones(
    scale, kind, positions
):
    architecture = ("model.architecture=encoder", "objective.kind=masked") if kind != "switch" else ()
    unlimited = ("moe.capacity_factor=null", "moe.eval_capacity_factor=null")
    recipe = tiny_recipe(f"model.positions={positions}", f"moe.router.kind={kind}", *architecture, *unlimited)
    model, batch = tiny_transformer(recipe), global_batch(recipe, 0)
    model.embedding.weight.data.mul_(scale)
    if model.positions is not None:
        model.positions.weight.data.mul_(scale)
    output = model(batch.tokens, context(*batch.tokens.shape, training=True))
    loss = build("objective", recipe.objective)(output.logits, batch)
    (loss + sum(sum(layer.losses.values()) for layer in output.moe)).backward()
    assert output.logits.values.isfinite().all()
    infinite = [name for name, weight in model.named_parameters() if not weight.grad.isfinite().all()]
    assert infinite == []


def test_the_norm_of_gradients_is_exact_for_zeros_and_for_very_different_sizes():
    assert float(squared_norm([torch.zeros(3000), torch.zeros(0), torch.zeros(())])) == 0
    sizes = torch.tensor([1e-15, 1.0, 1e15]).repeat_interleave(1100)
    assert float(squared_norm([sizes])) == pytest.approx(float(sizes.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("large", [1.0, 1e10, 1e18])
@pytest.mark.parametrize(
    "options",
    [{}, {"factor_from": 1}, {"epsilon1": 1.2e-38}, {"factor_from": 1, "epsilon1": 1.2e-38}],
    ids=str,
)
def test_adafactor_leaves_what_has_no_gradient_where_it_is_beside_the_largest_gradients(options, large):
    config = REGISTRY["optim"]["adafactor"].config(**options)
    assert_rows_without_a_gradient_stay("adafactor", config, large)


@pytest.mark.parametrize("large", [1.0, 1e10, 1e18])
@pytest.mark.parametrize("epsilon", [1e-8, 1.2e-38])
def test_adamw_leaves_what_has_no_gradient_where_it_is_beside_the_largest_gradients(epsilon, large):
    assert_rows_without_a_gradient_stay("adamw", REGISTRY["optim"]["adamw"].config(epsilon=epsilon), large)


def assert_rows_without_a_gradient_stay(kind: str, config, large: float) -> None:
    """As of the embeddings of tokens that a batch lacks."""
    weight = normal(6, 4).requires_grad_()
    before = weight.detach().clone()
    held = {"embedding.weight": Shard(weight.data, (6, 4), (0, 0), is_expert=False)}
    optimizer = build("optim", config, shards=held, mesh=one_worker())
    data = held["embedding.weight"].data
    for _ in range(3):
        data.grad = large * normal(6, 4, seed=1)
        data.grad[2] = 0
        optimizer.step()
    assert data.isfinite().all()
    assert torch.equal(data[2], before[2])
    assert not torch.equal(data[3], before[3])
