"""docs/reproductions.md from the result files: every verdict, table and chart, and nothing by hand."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reproduction.measures import COMPARISONS, MEASURES
from reproduction.plan import FLOPS_TOLERANCE, SEEDS, Arm, Claim, Expectation, Plan, ReproductionError
from reproduction.result import Result, load
from reproduction.verdict import STANDARD_ERRORS, Judgement, Outcome, judge, summary

INTRODUCTION = """# Reproductions

Claims of the papers, tried at a size that two CPU cores can train: a decoder of four layers of width 64 on 2.5
million tokens of Python source (claim 7: an encoder-decoder on sentence pairs). Runs of this size show signs and
mechanisms, not the papers' figures. Where the budget is too small to show an effect, the table says so, and
negative results are kept.

`python tools/reproduce.py report` writes this page from the files of
[tools/reproduction/results](../tools/reproduction/results); do not edit it by hand.

**Fixed before any run** (`tools/reproduction/`: base.yaml, arms.yaml, claims/): arms, seeds, budgets and the rule
for every outcome. Later changes are listed with the claim. Unless an arm says otherwise, the arms of a claim share
tokenizer, text and its order for each seed, tokens per step, optimizer, schedule, learning rate and number of
passes; the learning rate is not tuned for any of them. Validation drops no tokens, and its loss has no auxiliary
part. FLOPs are those of `moe_train/model/count.py`, forward and backward, with the experts that tokens actually
used; runs compared at equal FLOPs differ by at most {tolerance:.0%}.

**Verdicts.** Arms are paired by seed. Let m be the mean of the paired differences and e its standard error (their
sample standard deviation divided by the square root of their number). A difference of at most {errors:g} e is *no
difference*. `is at most` and `is close to` are met if m plus {errors:g} e stays within the margin, contradicted if
m minus {errors:g} e does not, and *undecided* in between. Each needs at least {seeds} seeds. The column {errors:g}
e is the smallest difference that the budget could have shown.

**Roles.** A claim holds here if all its rows with the role `assertion` are met, and in part if only some are. It
does not hold if none is met and at least one is contradicted; if none is met and none is contradicted, there is no
verdict. Rows with the role `beside` (ablations, mechanisms, premises) are judged but do not decide the verdict; a
`figure` is not judged. Roles were assigned after the runs, with the outcomes known, under the rule that no verdict
may improve: a row that is not met stays an assertion wherever the claim would look better without it. A row that
was itself added after the runs says so.

**Figures.** `loss`: validation loss in nats per token, mean over the last tenth of the run. `cv`, `max_violation`
(max / mean - 1), `dead_fraction`, `top_share`: of the worst layer, loads summed over the last fifth of the
training, before the capacity limit. `log_steps_to_same_loss`: ln of the ratio of the steps to the worse of two
final losses; with `flops` or `cpu`, of those. `cpu_seconds`: of the whole run on one thread, start and validation
included. Values are means and sample standard deviations over seeds."""


@dataclass(frozen=True)
class Found:
    """What was measured for one claim."""

    claim: Claim
    results: Mapping[str, Sequence[Result]]
    """By arm, in the order of the seeds; an arm without results has an empty list."""
    judgements: Sequence[tuple[Expectation, Judgement]]

    @property
    def verdict(self) -> str:
        """On the claim as a whole, by its assertions."""
        return summary([judgement.outcome for item, judgement in self.judgements if item.decides])

    @property
    def all_results(self) -> list[Result]:
        """Of all arms."""
        return [result for of_arm in self.results.values() for result in of_arm]


def collect(plan: Plan, claim: Claim, folder: Path, seeds: Sequence[int] = SEEDS) -> Found:
    """Read the results of a claim and judge it. Raises ReproductionError if they are not of one text."""
    results = {name: _results(plan.arms[name], folder, seeds) for name in claim.arms}
    texts = {result.text_hash for of_arm in results.values() for result in of_arm}
    if len(texts) > 1:
        raise ReproductionError(
            f"claim={claim.name}: its results were measured on {len(texts)} different texts, which cannot be compared; "
            "remove those of the older one and measure them again"
        )
    return Found(claim, results, [(item, _judge(item, results)) for item in claim.expect])


def document(plan: Plan, found: Sequence[Found], charts: Mapping[str, str]) -> str:
    """The whole page; `charts` has the path of a claim's picture by the claim's name."""
    introduction = INTRODUCTION.format(tolerance=FLOPS_TOLERANCE, errors=STANDARD_ERRORS, seeds=len(SEEDS))
    rows = [
        [
            f"{item.claim.number}",
            f"[{item.claim.title}](#{item.claim.number}-{_anchor(item.claim.title)})",
            _with_caveat(item),
            f"{len(item.all_results)} of {len(item.claim.arms) * len(SEEDS)}",
        ]
        for item in found
    ]
    parts = [introduction, _table(["claim", "", "verdict", "runs made"], rows)]
    parts += [_section(plan, item, charts.get(item.claim.name)) for item in found]
    return "\n\n".join(parts) + "\n"


def _with_caveat(found: Found) -> str:
    return f"{found.verdict} ({found.claim.caveat})" if found.claim.caveat else found.verdict


def _section(plan: Plan, found: Found, chart: str | None) -> str:
    claim = found.claim
    parts = [
        f"## {claim.number}. {claim.title}",
        f"{claim.source} **Verdict: {_with_caveat(found)}.**",
        _table(
            ["expected", "role", "mean difference", "outcome", "2 e"],
            [_judged(*item) for item in found.judgements],
        ),
        _table(
            ["arm", "what it is", *claim.show, "seeds"],
            [[name, plan.arms[name].about, *_shown(claim, found.results[name])] for name in claim.arms],
        ),
    ]
    if chart:
        parts.append(f"![losses and loads]({chart})")
    parts += [f"**Limits.** {claim.limits}", _origin(claim, found)]
    return "\n\n".join(parts)


def _results(arm: Arm, folder: Path, seeds: Sequence[int]) -> list[Result]:
    return [result for seed in seeds if (result := load(folder, arm, seed)) is not None]


def _judge(item: Expectation, results: Mapping[str, Sequence[Result]]) -> Judgement:
    judgement = judge(item.relation, differences(item, results), item.within)
    return replace(judgement, outcome=Outcome.NOT_JUDGED) if item.role == "figure" else judgement


def differences(item: Expectation, results: Mapping[str, Sequence[Result]]) -> list[float]:
    """One number per seed at which all that is compared was measured."""
    arm = {result.seed: result for result in results[item.arm]}
    if item.than is None:
        return [MEASURES[item.measure](result) - item.bound for result in arm.values()]
    other = {result.seed: result for result in results[item.than]}
    paired = [(arm[seed], other[seed]) for seed in arm if seed in other]
    if item.measure in COMPARISONS:
        return [COMPARISONS[item.measure](*pair) for pair in paired]
    return [MEASURES[item.measure](one) - MEASURES[item.measure](two) for one, two in paired]


def _judged(item: Expectation, judgement: Judgement) -> list[str]:
    outcome = str(judgement.outcome)
    if judgement.outcome is Outcome.MET and item.decides:
        outcome = f"**{outcome}**"
    border = STANDARD_ERRORS * judgement.standard_error
    role = f"{item.role}, added later" if item.added else item.role
    return [str(item), role, _number(judgement.mean, signed=True), outcome, _number(border)]


def _shown(claim: Claim, results: Sequence[Result]) -> list[str]:
    cells = []
    for measure in claim.show:
        values = [MEASURES[measure](result) for result in results]
        cells.append(_mean_and_spread([value for value in values if math.isfinite(value)]))
    return [*cells, str(len(results))]


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = _number(statistics.fmean(values))
    return f"{mean} ± {_number(statistics.stdev(values))}" if len(values) > 1 else mean


def _origin(claim: Claim, found: Found) -> str:
    results = found.all_results
    again = f"`python tools/reproduce.py {claim.name}` measures what is missing."
    if not results:
        return f"Not yet run. {again}"
    commits = ", ".join(sorted({result.commit[:10] for result in results}))
    dates = sorted({result.date for result in results})
    hours = sum(result.cpu_seconds for result in results) / 3600
    machines = "; ".join(sorted({result.machine for result in results}))
    unfinished = sorted({result.arm for result in results if not result.finished})
    ended = f" Ended before their last step: {', '.join(unfinished)}." if unfinished else ""
    return (
        f"Measured at commit {commits}, {dates[0]} to {dates[-1]}, {hours:.1f} hours of CPU (other claims share "
        f"arms), {machines}.{ended} {again}"
    )


def _number(value: float, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "-"
    sign = "+" if signed else ""
    return f"{value:{sign}.0f}" if abs(value) >= 100 else f"{value:{sign}.4f}"


def _anchor(title: str) -> str:
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return f"{kept.replace(' ', '-')}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
