"""What is to be shown and how: arms, claims and the rules of their verdicts, read from data.

base.yaml is the recipe that all arms share, arms.yaml says what each arm changes in it, claims/*.yaml what is
expected of which arms. They are committed before a run is made, and a result carries the fingerprint of its arm:
an arm that changed is measured again. verdict.py judges; runs.py measures.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from moe_train.config.load import load_recipe
from moe_train.config.schema import Recipe
from moe_train.errors import UsageError

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
"""Of every arm; arms are paired by seed, which gives initial values and the order of the text."""
FLOPS_TOLERANCE = 0.01
"""The runs of arms that a claim compares at equal FLOPs differ by at most this share."""

Relation = Literal["lower", "higher", "at_most", "close"]
Role = Literal["assertion", "beside", "figure"]


class ReproductionError(UsageError):
    """A claim, an arm or a result that cannot be used."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    about: str
    overrides: tuple[str, ...]
    """Of base.yaml, as on the command line."""
    seconds: float
    """CPU time of one run, estimated beforehand."""
    base: Path = HERE / "base.yaml"
    poison: str | None = None
    """What is done to the run, a name in poison.py; None: nothing."""

    @property
    def fingerprint(self) -> str:
        """Of all that was written about the arm; defaults that nobody wrote are the commit's."""
        written = [yaml.safe_load(self.base.read_text()), sorted(self.overrides), self.poison]
        return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]

    def recipe(self, seed: int) -> Recipe:
        """The resolved recipe. Raises RecipeError."""
        return load_recipe(self.base, [*self.overrides, f"seed={seed}"])


@dataclass(frozen=True)
class Expectation:
    """One comparison that a claim is judged by, or that is shown with it; verdict.py says when it is met."""

    measure: str
    """A name in measures.py."""
    arm: str
    relation: Relation
    than: str | None = None
    """The arm to compare with, paired by seed; None: the arm is compared with `bound`."""
    bound: float = 0.0
    within: float = 0.0
    """`close`: largest difference that is none; `at_most`: how much more is allowed."""
    role: Role = "assertion"
    """`assertion`: what the claim says, which decides its verdict; `beside`: an ablation, a mechanism or a premise,
    judged and shown; `figure`: shown alone."""
    added: bool = False
    """Added when the runs had been made."""

    @property
    def decides(self) -> bool:
        """The verdict on the claim depends on it."""
        return self.role == "assertion"

    def __str__(self) -> str:
        words = {
            "lower": "is lower than",
            "higher": "is higher than",
            "at_most": "is at most",
            "close": "is close to",
        }
        other = self.than or f"{self.bound:g}"
        margin = {"at_most": f" + {self.within:g}", "close": f" (within {self.within:g})"}.get(
            self.relation, ""
        )
        return f"{self.measure} of {self.arm} {words[self.relation]} {other}{margin if self.within else ''}"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper."""

    name: str
    number: int
    title: str
    source: str
    arms: tuple[str, ...]
    expect: tuple[Expectation, ...]
    equal_flops: tuple[str, ...]
    """Arms whose runs must cost the same."""
    show: tuple[str, ...]
    """Measures in the claim's table, in order."""
    over_flops: bool
    """The chart's losses stand over FLOPs, not over steps."""
    limits: str
    """What this experiment cannot show, and where it differs from the paper's."""
    caveat: str = ""
    """What the verdict must not be read without: it stands beside it, in the table of all claims too."""


@dataclass(frozen=True)
class Plan:
    """All claims and arms."""

    arms: Mapping[str, Arm]
    claims: Mapping[str, Claim]

    def claim(self, name: str) -> Claim:
        """The claim of that name or number. Raises ReproductionError."""
        for claim in self.claims.values():
            if name in (claim.name, str(claim.number)):
                return claim
        raise ReproductionError(
            f"claim={name}: there is no such claim; one of {', '.join(self.claims)}, or a number"
        )

    def arms_of(self, claims: tuple[Claim, ...]) -> list[Arm]:
        """The arms that `claims` need, each once, in their order."""
        return [self.arms[name] for name in dict.fromkeys(name for claim in claims for name in claim.arms)]


def read_plan(folder: Path = HERE) -> Plan:
    """Read arms.yaml and claims/*.yaml. Raises ReproductionError where they do not fit together."""
    arms = {
        name: Arm(
            name,
            entry["about"],
            tuple(entry["overrides"]),
            float(entry["seconds"]),
            folder / entry.get("base", "base.yaml"),
            entry.get("poison"),
        )
        for name, entry in yaml.safe_load((folder / "arms.yaml").read_text()).items()
    }
    claims = [
        _claim(path, yaml.safe_load(path.read_text())) for path in sorted((folder / "claims").glob("*.yaml"))
    ]
    for claim in claims:
        if not any(item.decides for item in claim.expect):
            raise ReproductionError(
                f"claim={claim.name}: none of its rows has the role assertion, so nothing could decide it; mark one"
            )
        named = {*claim.equal_flops, *(item.arm for item in claim.expect)}
        named |= {item.than for item in claim.expect if item.than}
        for name in (*claim.arms, *sorted(named)):
            if name not in arms or name not in claim.arms:
                raise ReproductionError(
                    f"claim={claim.name}: names the arm {name}, which is not in arms.yaml or not among the claim's arms"
                )
    return Plan(arms, {claim.name: claim for claim in sorted(claims, key=lambda claim: claim.number)})


def _claim(path: Path, entry: Mapping[str, Any]) -> Claim:
    return Claim(
        name=path.stem,
        number=entry["number"],
        title=entry["title"],
        source=entry["source"],
        arms=tuple(entry["arms"]),
        expect=tuple(Expectation(**item) for item in entry["expect"]),
        equal_flops=tuple(entry.get("equal_flops", ())),
        show=tuple(entry["show"]),
        over_flops=entry.get("over_flops", False),
        limits=" ".join(entry["limits"].split()),
        caveat=entry.get("caveat", ""),
    )
