"""Prepares what the page shows as JSON-ready data: thinned curves, loads in percent of the fair share, tiles, table.

Thinning never drops rows: neighbours are combined, losses and figures as means, loads as sums, so that nothing between
two points is lost.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from moe_train.config.check import problems
from moe_train.config.resolve import spec_of
from moe_train.model.count import count
from moe_train.monitor import balance
from moe_train.monitor.rows import Row
from moe_train.monitor.run import RunRecord

NOTHING = "-"
MAX_POINTS = 2000
"""Maximum number of points of a curve; more rows are combined."""
MAX_CELLS = 400_000
"""Maximum number of heat-map cells over all windows, layers and experts: about 1.5 MB of page."""
FIGURES = (
    (
        "cv",
        "Imbalance (CV)",
        "Standard deviation / mean of the experts' loads over the last steps. 0 is even.",
        "",
    ),
    ("chance_cv", "CV by chance", "What the CV would be if assignments were drawn evenly.", ""),
    ("drop_rate", "Drop rate", "Share of assignments beyond the capacity of their expert.", "%"),
    ("entropy", "Load entropy", "Entropy of the loads / ln E. 1 is even, 0 is one expert.", ""),
    ("dead_fraction", "Dead experts", "Share of experts below a tenth of the fair share.", "%"),
    (
        "router_top_probability",
        "Top probability",
        "The router's largest probability, a mean over tokens.",
        "%",
    ),
    (
        "experts_per_token",
        "Experts per token",
        "Experts that processed a token, without dropped assignments.",
        "",
    ),
)
"""Key of the rows, title, caption and unit of each line chart over layers; one without a value is not drawn."""

CURVES = (
    ("lr", "Learning rate", "Of the last update of each row.", 1.0),
    ("grad_norm", "Gradient norm", "Global, before clipping.", 1.0),
    (
        "memory_bytes",
        "Memory (GiB)",
        "Of the first worker: the peak of its GPU, or its process.",
        2.0**30,
    ),
)
"""Key of the rows, title, caption and divisor of each line chart of the run; one without a value is not drawn."""


def page_content(run: RunRecord) -> dict[str, Any]:
    """Returns everything that the page's script draws."""
    points = grouped(run.training, MAX_POINTS)
    windows = grouped(run.training, max(1, MAX_CELLS // max(1, sum(spec_of(run.recipe).num_experts))))
    has_experts = bool(run.layers)
    return {
        "paper": run.recipe.paper,
        "tiles": _tiles(run),
        "notices": list(_notices(run)),
        "footer": _footer(run, points, windows),
        "layers": run.layers,
        "events": [_event(row) for row in run.events],
        "train": {
            "steps": [rows[-1]["step"] for rows in points],
            "loss": [_mean([row["loss"] for row in rows]) for rows in points],
        },
        "validation": {
            "steps": [row["step"] for row in run.validation],
            "loss": [row["validation_loss"] for row in run.validation],
        },
        "curves": _curves(points),
        "figures": _figures(points) if has_experts else [],
        "windows": {
            "steps": [rows[-1]["step"] for rows in windows] if has_experts else [],
            "loads": [_loads(rows) for rows in windows] if has_experts else [],
        },
        "table": _table(run.layers, run.training[-1]["moe"]) if has_experts and run.training else [],
    }


def grouped(rows: Sequence[Row], limit: int) -> list[Sequence[Row]]:
    """Groups neighbouring rows into at most `limit` groups of one size; the last may be smaller."""
    size = max(1, math.ceil(len(rows) / limit))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _event(row: Row) -> dict[str, Any]:
    return {"step": row["step"], "event": row["event"], "attempt": row.get("attempt", 1)}


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the values that are not None, to 6 digits, which is enough for a page."""
    numbers = [value for value in values if value is not None]
    return float(f"{sum(numbers) / len(numbers):.6g}") if numbers else None


def _curves(points: list[Sequence[Row]]) -> list[dict[str, Any]]:
    curves = []
    for key, title, caption, divisor in CURVES:
        means = [_mean([row.get(key) for row in rows]) for rows in points]
        values = [None if mean is None else float(f"{mean / divisor:.6g}") for mean in means]
        if any(value is not None for value in values):
            curves.append({"key": key, "title": title, "caption": caption, "values": values})
    return curves


def _figures(points: list[Sequence[Row]]) -> list[dict[str, Any]]:
    figures = []
    for key, title, caption, unit in FIGURES:
        values = [_layer_means(rows, key) for rows in points]
        if any(value is not None for layers in values for value in layers):
            figures.append({"key": key, "title": title, "caption": caption, "unit": unit, "values": values})
    return figures


def _layer_means(rows: Sequence[Row], key: str) -> list[float | None]:
    """Returns [L] means over `rows`; rows of an older moe-train may lack the key."""
    row_values = (row["moe"].get(key, [None] * len(row["moe"]["load"])) for row in rows)
    return [_mean(layer) for layer in zip(*row_values, strict=True)]


def _loads(rows: Sequence[Row]) -> list[list[int | None]]:
    """Returns the load of every expert over `rows`, in percent of the fair share: [L][E of the layer]."""
    layers = zip(*(row["moe"]["load"] for row in rows), strict=True)
    return [_percent([sum(counts) for counts in zip(*layer, strict=True)]) for layer in layers]


def _percent(load: list[int]) -> list[int | None]:
    total = sum(load)
    # Rounded down, so that the page agrees with balance.dead_experts on which experts are dead: those below 10.
    return [100 * count * len(load) // total if total else None for count in load]


def _table(layers: list[str], moe: Row) -> list[dict[str, Any]]:
    return [
        {
            "layer": name,
            "cv": moe["cv"][position],
            "effective": _mean([balance.figure(moe, "effective", position)]),
            "largest": _share(balance.figure(moe, "max_violation", position), 1, len(load)),
            "smallest": _share(balance.figure(moe, "min_violation", position), -1, len(load)),
            "drop_rate": moe["drop_rate"][position],
            "dead": balance.figure(moe, "dead", position) or [],
        }
        for position, (name, load) in enumerate(zip(layers, moe["load"], strict=True))
    ]


def _share(violation: float | None, sign: int, num_experts: int) -> float | None:
    """Returns the share of all assignments that is this violation above or below the fair share."""
    return None if violation is None else (1 + sign * violation) / num_experts


def _tiles(run: RunRecord) -> list[dict[str, str]]:
    last: Row = run.training[-1] if run.training else {}
    validated = run.validation[-1] if run.validation else None
    tiles = [
        ("Step", f"{last.get('step', 0):,}", f"of {run.recipe.steps:,}: {run.state}"),
        ("Training loss", _decimal(last.get("loss")), "nats per token"),
        ("Speed", _large(last.get("tokens_per_second")), "tokens per second"),
        ("Workers", str(run.workers or NOTHING), f"expert degree {run.recipe.parallel.expert}"),
        ("Attempts", str(run.attempts or NOTHING), f"{run.resumes} resumed"),
    ]
    if validated:
        where = f"at step {validated['step']:,}"
        tiles.insert(2, ("Validation loss", _decimal(validated["validation_loss"]), where))
    if not problems(run.recipe):
        size = count(spec_of(run.recipe))
        note = f"{_large(size.active_parameters)} active per token"
        tiles.insert(-1, ("Parameters", _large(size.total_parameters), note))
    return [{"label": label, "value": value, "note": note} for label, value, note in tiles]


def _notices(run: RunRecord) -> list[str]:
    notices = []
    if not run.training:
        notices.append("No training row has been written yet; make the page again once there is one.")
    if not run.layers:
        notices.append("This model is dense: it has no experts to show.")
    return notices


def _footer(run: RunRecord, points: list[Sequence[Row]], windows: list[Sequence[Row]]) -> str:
    time = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"Made from {len(run.training):,} training rows of metrics.jsonl, {time}."]
    if points and len(points[0]) > 1:
        parts.append(f"Each point of a curve is the mean of {len(points[0])} rows.")
    if run.layers and windows and len(windows[0]) > 1:
        parts.append(f"Each window of the heat maps is the sum of {len(windows[0])} rows.")
    return " ".join(parts)


def _decimal(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _large(value: float | None) -> str:
    """Formats a number with three digits and a unit: 12.3 M."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
