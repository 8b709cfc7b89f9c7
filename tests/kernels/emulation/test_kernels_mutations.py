"""Every synchronisation of the kernels is needed, and the tests would notice if one were missing.

The fast set tries three mutants. `make sanitizer` tries all and writes tests/kernels/mutants.md.
"""

import datetime
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutations
import pytest
from mutation_rules import Subject

TABLE = Path(__file__).parents[1] / "mutants.md"
REPRESENTATIVES = (
    "protocol.cuh: release to relaxed (1)",
    "layout.h: posts of one parity (1)",
    "balance.cu: one edge too many (1)",
)
HEAD = """# Mutants of the kernels

Each is the sources with one change: a synchronisation deleted or weakened, data after its flag, a comparison, a sum or
an offset shifted. It is built with ThreadSanitizer and run by the emulated driver until something is noticed: `race` is
ThreadSanitizer's report, `wrong` a result that differs from the serial one, `hang` and `crash` are what they say.
Mutants of router statistics, load balancing and uniform numbers are run without the race checker first, and with it if
nothing was noticed; for each is told what noticed it first. Made from the sources' text by
`tests/kernels/emulation/mutations.py`; written by `make sanitizer`.
"""


def noticed(name: str, folder: Path) -> str:
    """What notices the mutant of this name."""
    found = [
        (subject, mutant)
        for subject in mutations.SUBJECTS
        for mutant in mutations.mutants(subject)
        if mutant.name == name
    ]
    assert len(found) == 1, f"{len(found)} mutants are called {name}"
    return mutations.run_mutant(*found[0], folder / "mutant").word


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_mutant_is_noticed(name, tmp_path):
    assert noticed(name, tmp_path) in ("race", "wrong")


@pytest.mark.sanitizer
def test_a_representative_mutant_of_the_waits_is_noticed(tmp_path):
    assert noticed("protocol.cuh: no wait (1)", tmp_path) in ("race", "wrong", "crash")


@pytest.mark.sanitizer
@pytest.mark.timeout(7200)
def test_every_mutant_is_noticed_or_argued_away(tmp_path):
    every = [(subject, mutant) for subject in mutations.SUBJECTS for mutant in mutations.mutants(subject)]
    folders = [tmp_path / str(number) for number in range(len(every))]
    found: dict[str, dict[mutations.Mutant, str]] = {subject.title: {} for subject in mutations.SUBJECTS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(mutations.run_mutant, *zip(*every, strict=True), folders)
        for (subject, mutant), run in zip(every, runs, strict=True):
            found[subject.title][mutant] = run.word
    tables = [_table(subject, found[subject.title]) for subject in mutations.SUBJECTS]
    TABLE.write_text("\n".join([HEAD, *tables]))
    for subject in mutations.SUBJECTS:
        survivors = {mutant.name for mutant, word in found[subject.title].items() if word == "right"}
        assert survivors == set(subject.equivalent), (
            "killed although argued away, or alive and not argued away"
        )


def _table(subject: Subject, found: dict[mutations.Mutant, str]) -> str:
    killed = sum(word != "right" for word in found.values())
    lines = [
        f"## {subject.title}",
        "",
        f"{datetime.date.today()}: {len(found)} mutants, {killed} noticed, {len(found) - killed} equivalent.",
        "",
        "| mutant | line | noticed by |",
        "|---|---|---|",
    ]
    for mutant, word in found.items():
        argument = subject.equivalent.get(mutant.name, "nothing")
        lines.append(f"| {mutant.name} | {mutant.line} | {argument if word == 'right' else word} |")
    return "\n".join(lines) + "\n"
