"""The command line as a user meets it: in processes of its own, without training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_train import cli

ROOT = Path(__file__).parents[3]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\nsteps: 20\nmodel: {num_layers: 2, d_model: 16, num_heads: 2}\n"
        "moe: {num_experts: 4}\ndata: {sequence_length: 8, global_batch: 8, tokenizer: {vocab_size: 300}}\n"
    )
    return path


def moe_train(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))
    return subprocess.run(
        [sys.executable, "-m", "moe_train.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_every_command_and_imports_nothing_slow() -> None:
    code = (
        "import atexit, sys\n"
        "slow = ('numpy', 'omegaconf', 'ray', 'rich', 'torch', 'wandb', 'yaml')\n"
        "atexit.register(lambda: print('imported', [name for name in slow if name in sys.modules]))\n"
        "from moe_train.cli import main\n"
        "main(['--help'])\n"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for command in ("run", "show", *cli.DELEGATED):
        assert f"\n    {command}" in done.stdout
    assert done.stdout.endswith("imported []\n")


def test_show_answers_without_torch(recipe: Path) -> None:
    code = (
        "import sys; from moe_train.cli import main; "
        f"code = main(['show', {str(recipe)!r}]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cluster")))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "no problems found" in done.stdout


def test_show_says_which_workers_hold_which_experts(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(recipe), "--workers", "4", "parallel.expert=2"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "worker 0: experts 0 to 1 of each MoE layer, sharded over 2 workers" in lines
    assert "worker 3: experts 2 to 3 of each MoE layer, sharded over 2 workers" in lines


def test_show_says_which_workers_hold_which_parts_of_experts(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degrees = ("parallel.expert=2", "parallel.expert_tensor=2")
    assert cli.main(["show", str(recipe), "--workers", "8", *degrees]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "worker 1: experts 0 to 1 of each MoE layer, part 2 of 2 of each, sharded over 2 workers" in lines
    assert "worker 6: experts 2 to 3 of each MoE layer, part 1 of 2 of each, sharded over 2 workers" in lines


def test_show_says_what_may_surprise_in_words_only(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["moe.router.kind=top_k", "moe.min_capacity=1"]
    assert cli.main(["show", str(recipe), *overrides]) == 0
    output = capsys.readouterr().out
    assert (
        "\nnotes:\n  moe.capacity_factor=1.25: moe.capacity_convention=mesh does not count choices" in output
    )
    assert "\n\ncapacity:\n  moe.capacity_factor=1.25: " in output
    assert output.endswith("\n\nno problems found\n")
    assert cli.main(["show", str(recipe), *overrides, "moe.num_experts=0"]) == 2
    assert "notes:" not in capsys.readouterr().out
    assert cli.main(["show", str(recipe), "--json", *overrides]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "there is no such file or folder"),
        ("nowhere/*.md", "holds no text"),
        ("x" * 5000, "cannot be read (File name too long)"),
    ],
)
def test_show_notes_that_the_text_is_not_on_this_machine(
    recipe: Path, capsys: pytest.CaptureFixture[str], path: str, reason: str
) -> None:
    for words, count in (([], 0), ([f"data.corpus.path={path}"], 1)):
        assert cli.main(["show", str(recipe), "--json", *words]) == 0  # a cluster may have it
        content = json.loads(capsys.readouterr().out)
        about_text = [note for note in content["notes"] if note.startswith("data.corpus.path=")]
        assert len(about_text) == count
        assert all(f"{path}: {reason}" in note for note in about_text)


def test_show_json_has_exactly_the_keys_that_programs_rely_on(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(recipe), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == [
        "recipe",
        "total_parameters",
        "active_parameters",
        "flops_per_token",
        "problems",
        "notes",
    ]
    assert content["recipe"]["model"]["d_model"] == 16
    # embedding 4800, attention 2 * 1024, norms 80, feed-forward 2048, router 64, experts 8192
    assert content["total_parameters"] == 4800 + 2048 + 80 + 2048 + 64 + 8192
    assert content["active_parameters"] == content["total_parameters"] - 3 * 2048
    assert content["problems"] == []


def test_show_lists_every_problem_and_ends_with_the_usage_code(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(recipe), "--json", "model.num_heads=3", "moe.capacity_factor=-1"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem.split(":")[0] for problem in problems] == [
        "moe.capacity_factor=-1.0",
        "model.num_heads=3",
    ]


def test_show_lists_problems_of_a_recipe_whose_degrees_do_not_fit_either(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(recipe), "--workers", "4", "parallel.expert=3", "model.num_heads=3"]) == 2
    assert "model.num_heads=3: must divide" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "recipe=nowhere.yaml: there is no such file"),
        (["run", "RECIPE", "model.d_modle=8"], "model.d_modle: there is no such key"),
        (
            ["run", "RECIPE", "--workers", "3", "parallel.expert=2"],
            "parallel.expert=2: must divide the number of",
        ),
        (["run", "RECIPE", "--wrokers", "3"], "--wrokers: there is no such option"),
        (["run", "RECIPE", "--resume", "40"], "--resume 40: runs/small has no run to resume"),
    ],
)
def test_a_mistake_is_one_message_and_the_usage_code(
    recipe: Path, arguments: list[str], message: str
) -> None:
    given = [str(recipe) if word == "RECIPE" else word for word in arguments]
    done = moe_train(*given, cwd=recipe.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("moe-train: error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (recipe.parent / "runs/small/recipe.yaml").exists()


def test_overrides_may_stand_anywhere(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["show", str(recipe), "steps=7", "--json", "seed=3", "--workers", "2", "log_every=5"]) == 0
    )
    shown = json.loads(capsys.readouterr().out)["recipe"]
    assert (shown["steps"], shown["seed"], shown["log_every"]) == (7, 3, 5)


def test_a_dry_run_says_the_command_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert cli.main(["run", str(recipe), "--workers", "2", "--dry-run", "--run-dir", str(run_dir)]) == 0
    output = capsys.readouterr().out
    assert f"-u -P -m moe_train.worker {run_dir}/attempts/1/recipe.yaml --run-dir {run_dir}" in output
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("user", "overrides", "expected"),
    [("5", [], "5"), ("5", ["job.threads=3"], "3"), ("", [], str(max(1, len(os.sched_getaffinity(0)) // 2)))],
)
def test_threads_are_those_of_the_recipe_else_of_the_user_else_the_cores_shared_out(
    recipe: Path,
    user: str,
    overrides: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", user)
    assert cli.main(["run", str(recipe), "--workers", "2", "--dry-run", *overrides]) == 0
    threads = "1 thread" if expected == "1" else f"{expected} threads"
    assert f"workers     2 with {threads} each\n" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--workers", "0"], ["--resume", "maybe"], ["--max-restarts", "-1"]])
def test_a_wrong_option_value_names_the_rule(
    recipe: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(recipe), *wrong])
    assert end.value.code == 2
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run"], ["show"], ["data", "info"]])
def test_a_missing_recipe_is_all_that_is_asked_for(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 2
    required = capsys.readouterr().err.strip().rpartition("required: ")[2]
    assert required.lower() == "recipe"
