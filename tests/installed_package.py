"""The package of docs/extending.md, installed into a folder as an installer would leave it: modules and metadata."""

import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path

from copied_tree import code_blocks


def install(
    site: Path, modules: Mapping[str, str], entries: Mapping[str, Mapping[str, str]], name: str = "acme-moe"
) -> None:
    """Put modules and the metadata of a package into `site`: `entries` are entry points by group."""
    for path, text in modules.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, of_group in entries.items():
        lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in of_group.items()), ""]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def install_acme_moe(site: Path) -> None:
    """The package as the two pages have it."""
    config, _, router = code_blocks("adding-a-router.md")
    (project,) = code_blocks("extending.md", "### A complete package", language="toml")
    init, objective, callback = code_blocks("extending.md", "### A complete package")
    modules = {
        "__init__": init,
        "cosine_config": config,
        "cosine": router,
        "calm_language": objective,
        "losses": callback,
    }
    install(
        site,
        {f"acme_moe/{module}.py": text for module, text in modules.items()},
        tomllib.loads(project)["project"]["entry-points"],
    )
