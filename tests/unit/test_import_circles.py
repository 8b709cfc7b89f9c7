"""No module of ours imports itself, directly or through others, for types either."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("moe_train", "cluster/moe_cluster", "kernels/moe_kernels")
MODULES = {
    ".".join(path.relative_to((ROOT / package).parent).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere, also where only a type checker looks."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= submodules & MODULES.keys() or {node.module}
    return names & MODULES.keys()


def test_no_module_imports_itself_through_others():
    graph = {name: imports(path) for name, path in MODULES.items()}
    assert len(graph) > 300
    assert "moe_train.config.kinds.facts" in graph["moe_train.config.kinds.kind"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
