"""Every Python process of ours runs the code of the process that started it."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import lay_traps

from moe_cluster.job import Attempt, JobSpec
from moe_cluster.local.executor import LocalExecutor
from moe_cluster.node.elastic import elastic_command
from moe_cluster.own_code import module_command, package_folders, with_own_code
from moe_cluster.ray.workers import passed_on
from moe_cluster.slurm.node import Share

ROOT = Path(__file__).parents[3]
SOURCES = [
    path
    for name in ("cluster", "moe_train", "kernels", "tools")
    for path in sorted((ROOT / name).rglob("*.py"))
]
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md"), ROOT / "README.md"]


@pytest.fixture
def shadow(tmp_path: Path) -> Path:
    """A working directory whose modules have the names of ours and of the standard library's."""
    lay_traps(tmp_path)
    return tmp_path


def test_a_module_of_the_working_directory_takes_no_place_of_ours(shadow: Path) -> None:
    command = module_command("moe_cluster.node.health", "--json", "--run-dir", str(shadow))
    environment = with_own_code(os.environ)
    ended = subprocess.run(command, cwd=shadow, env=environment, capture_output=True, text=True, check=True)
    assert "host" in json.loads(ended.stdout)


def test_a_relative_path_of_a_user_still_leads_to_it_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/own_router.py").write_text("print('imported')\n")
    monkeypatch.chdir(tmp_path)
    environment = with_own_code({**os.environ, "PYTHONPATH": "plugins"})
    ended = subprocess.run(
        module_command("own_router"), cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "imported\n"
    assert passed_on({"PYTHONPATH": "plugins"})["PYTHONPATH"].endswith(str(tmp_path / "plugins"))


def test_a_command_started_from_a_clone_that_is_not_installed_has_workers_of_that_clone(
    tmp_path: Path,
) -> None:
    """Python finds the clone through `-m` alone there, which puts the working directory on the path."""
    for name in ("moe_train", "moe_cluster", "moe_kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    for module in ("own_code",):
        source = ROOT / "cluster/moe_cluster" / f"{module}.py"
        (tmp_path / f"moe_cluster/{module}.py").write_text(source.read_text())
    (tmp_path / "moe_train/starts.py").write_text(
        "import os, subprocess\n"
        "from moe_cluster.own_code import module_command, with_own_code\n"
        "os.environ.pop('PYTHONPATH', None)\n"
        "subprocess.run(module_command('moe_train.started'), env=with_own_code(os.environ), cwd='/', check=True)\n"
    )
    (tmp_path / "moe_train/started.py").write_text("print(__file__)\n")
    command = [sys.executable, "-m", "moe_train.starts"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{tmp_path}/moe_train/started.py\n"


def test_without_a_path_of_a_user_and_with_installed_code_nothing_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {str(Path(folder).parent) for folder in package_folders()}
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in folders] + sorted(folders))
    assert with_own_code({"A": "b"}) == {"A": "b"}
    assert with_own_code({"PYTHONPATH": ""}) == {"PYTHONPATH": ""}


def test_the_commands_of_launchers_leave_the_working_directory_out() -> None:
    attempt = Attempt(("recipe.yaml",), 2, Path("/runs/a"), 1)
    elastic = elastic_command(attempt, 2, [])
    assert elastic[1:4] == ["-P", "-m", "torch.distributed.run"]
    assert elastic[elastic.index("--no-python") :] == [
        *("--no-python", sys.executable, "-u", "-P", "-m", "moe_train.worker", "recipe.yaml")
    ]
    assert Share(("node1",), 1234, (2,)).command(attempt)[1:4] == ["-P", "-m", "moe_cluster.slurm.node"]
    job = JobSpec("small", Path("/runs/a"), ("run", "a.yaml"))
    assert " -P -m moe_train.cli run a.yaml " in LocalExecutor({}).render(job)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_process_is_started_with_the_working_directory_on_its_path(path: Path) -> None:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.List | ast.Tuple):
            words = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
            for index, word in enumerate(words):
                assert word != "-m" or words[index - 1] == "-P", f"{path}:{node.lineno}: -m without -P"
    assert not re.search(r"python3? -m moe_", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_tells_to_start_one_so(path: Path) -> None:
    assert not re.search(r"python3? -m moe_", path.read_text())
