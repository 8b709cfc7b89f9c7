"""What the measuring tools share: interleaved rounds in a varied order, tables, the JSON file, peak memory.

Competitors are measured in the same run, one after the other within a round and in another order each round,
and compared round by round: on a shared machine the speed changes from moment to moment, but for all of them.
"""

import argparse
import json
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def interleave(
    measures: Mapping[str, Callable[[], float]], *, budget_s: float, least: int, seed: int = 0
) -> dict[str, list[float]]:
    """Call every measure once a round for `budget_s` seconds of wall time, but for `least` rounds at least.

    One more round before them warms up and is not counted. The i-th entry of every list is from round i.
    """
    order, shuffle = list(measures), random.Random(seed).shuffle
    results: dict[str, list[float]] = {name: [] for name in measures}
    for measure in measures.values():
        measure()
    began = time.perf_counter()
    while len(results[order[0]]) < least or time.perf_counter() - began < budget_s:
        shuffle(order)
        for name in order:
            results[name].append(measures[name]())
    return results


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds of value / base."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def text_table(rows: Sequence[Row], *, markdown: bool) -> str:
    """Rows of equal keys as a table: aligned columns, or Markdown; nothing of none."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in padded)
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """`--markdown` and `--json`, which `report` reads."""
    parser.add_argument("--markdown", action="store_true", help="print one Markdown table at the end")
    parser.add_argument("--json", type=Path, help='write {"rows": [...]} to this file')


def report(tables: Iterable[Sequence[Row]], options: argparse.Namespace, remark: Callable[[], str]) -> None:
    """Print each table as soon as it is measured, or one in Markdown at the end; then the machine and a remark."""
    rows: list[Row] = []
    for table in tables:
        rows += table
        if not options.markdown:
            print(text_table(table, markdown=False), flush=True)
    if options.markdown:
        print(text_table(rows, markdown=True))
    print(f"{machine()}; {remark()}")
    if options.json:
        write_rows(options.json, rows)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write `{"rows": [...]}`."""
    path.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n")


def peak_memory_gib() -> float:
    """The most memory that this process, or one of its finished children, has held at once (resident)."""
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kib / 2**20


def machine() -> str:
    """CPU model, date and number of cores in one line, to stand under a table."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = f"{len(names)} cores of {names[0]}" if names else model
    return f"{model}, {time.strftime('%Y-%m-%d')}"


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
