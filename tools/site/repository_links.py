"""Makes the links of docs/ that lead to other files of the repository work on the site: a hook of mkdocs.

On GitHub `../kernels/README.md` is a relative link. The site holds docs/ alone, so there it becomes an address below
`repo_url`, or the file's path as code where no repository is configured. A link to a missing file fails the build.
"""

import logging
import os
import re
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.repository_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replaces every link that leaves docs/."""
    folder = os.path.dirname(page.file.abs_src_path)
    root = os.path.dirname(config.config_file_path)

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link[1], os.path.normpath(os.path.join(folder, link[2])), link[3] or ""
        if os.path.commonpath([target, config.docs_dir]) == config.docs_dir:
            return link[0]
        path = os.path.relpath(target, root)
        if not os.path.exists(target):
            log.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if not config.repo_url:
            return f"`{path}`" if text.strip("`") in (path, os.path.basename(path)) else f"{text} (`{path}`)"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"

    return LINK.sub(replaced, markdown)
