"""Logits cut by vocabulary are read as whole ones are: every reader, values and all gradients."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from gloo_workers import run_workers
from tiny_model import normal
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_train.config.kinds.objective import ConsistencyConfig, LanguageConfig, TranslationConfig
from moe_train.config.registry import build
from moe_train.data.batch import IGNORED, Batch
from moe_train.decoding.beam_search import beam_search
from moe_train.model.logits import (
    Logits,
    LogProbabilities,
    VocabularyPart,
    best_continuations,
    cross_entropies,
    log_probabilities,
    log_sum_exp,
    only,
)
from moe_train.parallel.axis import Axis
from moe_train.parallel.world import World

SEQUENCES, LENGTH = 3, 5
TARGETS = torch.tensor([[0, 10, 3, 7, IGNORED], [4, IGNORED, 8, 5, 1], [2, 6, 9, IGNORED, IGNORED]])
BATCH = Batch(TARGETS.clamp(min=0), TARGETS, torch.arange(SEQUENCES), targets_per_sequence=4.5)
UNLIKE = normal(SEQUENCES, LENGTH, seed=9)
"""Factors that give each position a gradient of its own."""
EXTREME = 1e4 * torch.eye(11)[torch.arange(SEQUENCES * LENGTH) % 11].view(SEQUENCES, LENGTH, 11)
"""Logits whose exponentials overflow, the largest on every worker in turn."""


def consistency(logits: list[Logits], batch: Batch) -> torch.Tensor:
    objective = build("objective", ConsistencyConfig(alpha=3.0, label_smoothing=0.2))
    return objective.training_loss(logits, batch).total


def translation(logits: list[Logits], batch: Batch) -> torch.Tensor:
    return build("objective", TranslationConfig(label_smoothing=0.2)).training_loss(logits[:1], batch).total


def language(logits: list[Logits], batch: Batch) -> torch.Tensor:
    return build("objective", LanguageConfig())(logits[0], batch)


def one_by_one(logits: list[Logits], batch: Batch) -> torch.Tensor:
    return (cross_entropies(logits[0], batch.targets) * UNLIKE).sum()


def log_sums(logits: list[Logits], batch: Batch) -> torch.Tensor:
    return (log_sum_exp(logits[0]).square() * UNLIKE).sum()


Reader = Callable[[list[Logits], Batch], torch.Tensor]
READERS: dict[str, Reader] = {
    reader.__name__: reader for reader in (consistency, translation, language, one_by_one, log_sums)
}


def written_out(reader: str, passes: Sequence[torch.Tensor]) -> torch.Tensor:
    """The slow twin, in float64 over whole logits, by formulas of its own."""
    real = TARGETS != IGNORED
    chosen = [torch.log_softmax(each.double(), -1) for each in passes]
    at_targets = [-log_p[real].gather(1, TARGETS[real].unsqueeze(1)).squeeze(1) for log_p in chosen]
    smoothed = [
        0.8 * task.sum() / 13.5 - 0.2 * log_p[real].mean(1).sum() / 13.5
        for task, log_p in zip(at_targets, chosen, strict=True)
    ]
    if reader == "consistency":
        first, second = (log_p[real] for log_p in chosen)
        both = F.kl_div(first, second, log_target=True, reduction="sum") + F.kl_div(
            second, first, log_target=True, reduction="sum"
        )
        return sum(smoothed) + 3.0 * both / 2 / 13.5
    if reader == "translation":
        return smoothed[0]
    if reader == "language":
        return at_targets[0].mean()
    if reader == "one_by_one":
        return (at_targets[0] * UNLIKE[real]).sum()
    return (passes[0].double().logsumexp(-1).square() * UNLIKE).sum()


def whole_passes(kind: str, size: int) -> list[torch.Tensor]:
    """Two passes' logits of a vocabulary of 11 tokens, of which the first `size` are used."""
    if kind == "extreme":
        return [EXTREME[..., :size], EXTREME.flip(0)[..., :size]]
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    return [(3 * normal(SEQUENCES, LENGTH, 11, seed=seed)).to(dtype)[..., :size] for seed in (1, 2)]


def cut(whole: torch.Tensor, part: VocabularyPart) -> torch.Tensor:
    """What the head of one worker computes: the logits of its tokens."""
    return whole[..., part.first : part.first + part.count].clone().requires_grad_()


TOLERANCE = {"fp32": (1e-5, 1e-6), "bf16": (1e-2, 1e-6), "extreme": (1e-5, 1e-3)}
"""Of gradients, relative and absolute: of extreme logits they are differences of terms of up to 1e4."""
CASES = [(reader, kind) for reader in READERS for kind in TOLERANCE]


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.elements = max(self.elements, *(each.numel() for each in tensors), 0)
        return result


def read_on_a_rank(world: World) -> dict[int, dict[object, object]]:
    """Everything that this file asks of a rank, on an axis of the first two of three workers, and on one of all."""
    meshes = {size: DeviceMesh("cpu", list(range(size))) for size in (2, 3)}
    return {size: read_along(Axis.along(mesh)) for size, mesh in meshes.items() if world.rank < size}


def read_along(axis: Axis) -> dict[object, object]:
    results, part = {}, VocabularyPart(11, axis)
    for reader, kind in CASES:
        passes = [cut(each, part) for each in whole_passes(kind, 11)]
        with Largest() as largest:
            loss = READERS[reader]([Logits(each, part) for each in passes], BATCH)
            gradients = torch.autograd.grad(loss, passes, allow_unused=True)
        results[reader, kind] = loss.detach(), gradients, largest.elements
    results["nothing predicted"] = of_nothing(part)
    results["continuations"] = continuations(axis)
    results["search"] = search(part)
    return results


def of_nothing(part: VocabularyPart) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of a batch without targets, their gradient, and the mean."""
    values, none = cut(whole_passes("fp32", 11)[0], part), torch.full_like(TARGETS, IGNORED)
    logits = Logits(values, part)
    losses = cross_entropies(logits, none)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    return losses.detach(), gradient, language([logits], Batch(none, none, torch.arange(3))).detach()


SIZES = (2, 4, 11)
"""Vocabularies of which the last of three workers has no token (2, 4) or one less than the others (11)."""


def continuations(axis: Axis) -> dict[int, tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]]:
    """For each size, the best of the continuations of K = LENGTH beams, and a loss with its gradient."""
    found = {}
    for size in SIZES:
        part = VocabularyPart(size, axis)
        values = cut(whole_passes("fp32", size)[0], part)
        logits = Logits(values, part)
        with torch.no_grad():
            best = best_or_last(logits)
        targets = TARGETS.clamp(max=size - 1)
        loss = (cross_entropies(logits, targets) * UNLIKE).sum() + log_sum_exp(logits).sum()
        found[size] = best, loss.detach(), torch.autograd.grad(loss, values)[0]
    return found


def best_or_last(logits: Logits) -> list[torch.Tensor]:
    """The best continuations, and those if only the last token may follow."""
    log_p = log_probabilities(logits)
    choices = (log_p, only(log_p, logits.part.size - 1))
    return [each for choice in choices for each in best_continuations(UNLIKE, choice)]


def search(part: VocabularyPart):
    """A beam search over a table of 11 tokens."""

    def step(prefixes: torch.Tensor) -> LogProbabilities:
        table = 2 * normal(SEQUENCES, 4, 11, 11, seed=5)
        after = table[torch.arange(SEQUENCES).unsqueeze(1), prefixes.shape[2] - 1, prefixes[:, :, -1]]
        return log_probabilities(Logits(cut(after, part), part))

    sizes = {"beam_size": 3, "max_length": 4, "alpha": 0.6, "start": 0, "end": 1}
    with torch.no_grad():
        return beam_search(step, SEQUENCES, device=torch.device("cpu"), **sizes)


@pytest.fixture(scope="module")
def of_all_ranks():
    return run_workers(3, read_on_a_rank)


@pytest.fixture(params=[2, 3], ids=lambda size: f"{size} workers")
def results(request, of_all_ranks):
    """By rank of the axis."""
    return [of_rank[request.param] for of_rank in of_all_ranks[: request.param]]


@pytest.mark.parametrize(("reader", "kind"), CASES)
def test_a_reader_of_cut_logits_has_the_value_and_the_gradient_of_whole_ones(results, reader, kind):
    passes = [each.clone().requires_grad_() for each in whole_passes(kind, 11)]
    expected = written_out(reader, passes)
    wanted = torch.autograd.grad(expected, passes, allow_unused=True)
    for loss, _, largest in (of_rank[reader, kind] for of_rank in results):
        assert loss.dtype == torch.float32
        assert 0 < largest <= SEQUENCES * LENGTH * -(-11 // len(results)), "a rank holds more than its tokens"
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=1e-6)
    for number, gradient in enumerate(wanted):
        mine = [of_rank[reader, kind][1][number] for of_rank in results]
        if gradient is None:
            assert mine == [None] * len(results)
            continue
        rtol, atol = TOLERANCE[kind]
        torch.testing.assert_close(torch.cat(list(mine), -1), gradient, rtol=rtol, atol=atol)


def test_targets_that_are_ignored_have_no_gradient_and_no_part_in_the_loss(results):
    for reader in ("consistency", "translation", "language", "one_by_one"):
        gradient = torch.cat([of_rank[reader, "fp32"][1][0] for of_rank in results], -1)
        assert not gradient[TARGETS == IGNORED].any()
        assert gradient[TARGETS != IGNORED].any(1).all()
    for of_rank in results:
        losses, gradient, mean = of_rank["nothing predicted"]
        assert not losses.any()
        assert not gradient.any()
        assert mean.isnan(), "as torch's mean of nothing is"


@pytest.mark.parametrize("size", SIZES)
def test_the_best_continuations_are_those_of_whole_logits_also_where_a_worker_has_no_token(results, size):
    values = whole_passes("fp32", size)[0].clone().requires_grad_()
    logits, targets = Logits.whole(values), TARGETS.clamp(max=size - 1)
    expected = [each.detach() for each in best_or_last(logits)]
    loss = (cross_entropies(logits, targets) * UNLIKE).sum() + log_sum_exp(logits).sum()
    for best, mine, _ in (of_rank["continuations"][size] for of_rank in results):
        torch.testing.assert_close(best, expected)
        torch.testing.assert_close(mine, loss.detach())
    gradient = torch.cat([of_rank["continuations"][size][-1] for of_rank in results], -1)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, values)[0])


def test_a_beam_search_finds_what_it_finds_with_whole_logits(results):
    expected = search(VocabularyPart(11))
    for of_rank in results:
        assert torch.equal(of_rank["search"].tokens, expected.tokens)
        torch.testing.assert_close(of_rank["search"].scores, expected.scores)
