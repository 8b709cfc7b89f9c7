"""Assembles the page: one self-contained HTML file with its styles, scripts and data.

The script writes every name of the run as text, never as markup, and the page's own policy forbids loading anything.
content.py decides what is shown; charts.js, heatmaps.js and page.js draw it.
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
    """Returns the complete page of `run`."""
    parts = {
        "TITLE": html.escape(run.recipe.name),
        "STYLE": _source("page.css"),
        "DATA": _embedded(page_content(run)),
        "SCRIPT": "\n".join(_source(name) for name in SCRIPTS),
    }
    # In one pass, so that nothing inside a part is mistaken for the placeholder of another.
    return re.sub(r"@([A-Z]+)@", lambda place: parts[place[1]], _source("page.html"))


def write_page(run: RunRecord, path: Path) -> None:
    """Writes the page of `run` to `path`. Raises RunError if that cannot be done."""
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
    """Encodes JSON so that no HTML parser mistakes it for the end of its script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
