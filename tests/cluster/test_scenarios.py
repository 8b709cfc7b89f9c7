"""A scenario's row goes into the last section of its page, and the page above it stays."""

from pathlib import Path

import pytest
from scenarios import HEADING, SECTION, Scenarios

PAGE = Path(__file__).parents[2] / "docs"


def test_a_scenario_replaces_its_own_row_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_TRAIN_TABLES", str(tmp_path))
    page = tmp_path / "slurm.md"
    page.write_text("# Slurm\n\n| a table | above |\n|---|---|\n| stays | so |\n\n")
    scenarios = Scenarios("slurm", "How it was tried.\n")
    scenarios.add("a node dies", "resumes", "failed", 40)
    scenarios.add("nothing", "ends well", "as promised")
    scenarios.add("a node dies", "resumes", "as promised", 29.4)
    above, heading, below = page.read_text().partition(SECTION)
    assert heading
    assert above == "# Slurm\n\n| a table | above |\n|---|---|\n| stays | so |\n\n"
    _, _, rows = below.partition(HEADING)
    first, second = rows.splitlines()
    assert first.startswith("| a node dies | resumes | as promised | 29 s | ")
    assert second.startswith("| nothing | ends well | as promised |  | ")


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_the_pages_have_the_section_that_the_scenarios_write(name: str) -> None:
    section = (PAGE / f"{name}.md").read_text().partition(SECTION)[2]
    assert HEADING in section
    assert "##" not in section.replace(HEADING, ""), "the section is the last of its page"
