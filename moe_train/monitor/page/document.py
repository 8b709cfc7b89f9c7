"""Puts the page together: one HTML file with its styles, scripts and data inside, which needs nothing else.

The script writes every name of the run as text, never as markup, and the page's own policy forbids it to load
anything. content.py decides what is shown, charts.js, heatmaps.js and page.js draw it.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from moe_train.errors import RunError
from moe_train.monitor.page.content import page_content
from moe_train.monitor.run import RunRecord

SOURCES = Path(__file__).parent
SCRIPTS = ("charts.js", "heatmaps.js", "page.js")


def render_page(run: RunRecord) -> str:
    """The page of `run`, complete."""
    parts = {
        "TITLE": html.escape(run.recipe.name),
        "STYLE": _source("page.css"),
        "DATA": _embedded(page_content(run)),
        "SCRIPT": "\n".join(_source(name) for name in SCRIPTS),
    }
    # One pass, so that nothing inside a part is taken for the place of another.
    return re.sub(r"@([A-Z]+)@", lambda place: parts[place[1]], _source("page.html"))


def write_page(run: RunRecord, path: Path) -> None:
    """Write the page of `run` to `path`. Raises RunError if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_page(run), encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"--html={path}: cannot be written ({error.strerror}); "
            "correct its permissions or choose another file"
        ) from None


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _embedded(content: dict[str, Any]) -> str:
    """JSON that no HTML parser can take for the end of its script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
