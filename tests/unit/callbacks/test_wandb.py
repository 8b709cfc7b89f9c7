"""The W&B sink with the real wandb client, against a mock of its server (tests/fake_wandb.py) or none at all.

Each run is a process of its own, as W&B's client keeps state in its process.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import API_KEY, FakeWandb, fake_wandb

from moe_train.callbacks import wandb as wandb_sink
from moe_train.callbacks.callback import RunInfo
from moe_train.callbacks.wandb import WandbSink, flatten
from moe_train.config.check import problems
from moe_train.config.schema import Recipe
from moe_train.config.wandb import WandbConfig

WAIT_S = 30.0
DEAD = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": API_KEY}


FIGURES = (
    "cv",
    "max_violation",
    "entropy",
    "dead_fraction",
    "drop_rate",
    "router_entropy",
    "router_top_probability",
    "experts_per_token",
)


def row(step: int, attempt: int = 1) -> dict[str, Any]:
    figures = {name: [0.5, 0.25] for name in FIGURES}
    moe = {"load": [[1, 2], [3, 4]], "dropped": [0, 0], **figures}
    return {
        "step": step,
        "attempt": attempt,
        "loss": 1.0 / (1 + step),
        "losses": {"balance": 1.0},
        "lr": 0.1,
        "moe": moe,
    }


def drive(arguments: dict[str, Any]) -> None:
    """One attempt at a run with a W&B sink; what the test process starts."""
    sink = WandbSink(WandbConfig(mode=arguments["mode"], project="tests"))
    if arguments.get("state"):
        sink.load_state_dict(arguments["state"])
    attempt = arguments.get("attempt", 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    wandb_sink.FINISH_TIMEOUT_S = 2.0
    began = time.monotonic()
    sink.on_start(RunInfo(Recipe(name="tiny"), Path(arguments["run_dir"]), attempt, 0, 2, 1000, 500, (1, 3)))
    seconds = time.monotonic() - began
    for step in arguments["steps"]:
        sink.on_row(row(step, attempt))
    imported = "wandb" in sys.modules
    print(json.dumps({"state": sink.state_dict(), "seconds": seconds, "imported": imported}), flush=True)
    if arguments.get("hang"):
        signal.sigwait([signal.SIGUSR1])
    sink.on_row({"step": 99, "attempt": attempt, "event": "stop"})
    sink.on_row({"step": 99, "attempt": attempt, "validation_loss": 0.75})
    sink.on_stop(0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `drive` in a process that sees no W&B account of this machine."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(environment: dict[str, str], **arguments: Any) -> subprocess.Popen[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        clean |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_ERROR_REPORTING": "false"}
        clean |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        arguments |= {"run_dir": str(tmp_path)}
        command = [sys.executable, __file__, json.dumps(arguments)]
        processes.append(
            subprocess.Popen(
                command,
                env=clean | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start_process
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with fake_wandb() as running:
        yield running


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """What `drive` reported and all it logged, once it ended well."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert len(lines) == 1, f"something other than the test printed: {out}"
    return json.loads(lines[0]), err


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the rows never arrived"
        time.sleep(0.05)


def test_a_killed_run_goes_on_as_the_same_wandb_run(
    start: Callable[..., subprocess.Popen[str]], server: FakeWandb
) -> None:
    first = start(server.environment, mode="online", steps=[0, 10, 20], hang=True)
    assert first.stdout is not None
    state = json.loads(first.stdout.readline())["state"]
    wait_for(lambda: len(server.runs) == 1 and len(next(iter(server.runs.values())).history) == 3)
    first.kill()
    first.wait()
    report, messages = finish(
        start(server.environment, mode="online", steps=[10, 20, 30], attempt=2, state=state)
    )
    assert report["state"] == state
    assert messages == ""
    (run_id,) = server.runs
    assert run_id == state["run_id"]
    run = server.runs[run_id]
    seen = [(sent["train/step"], sent["attempt"]) for sent in run.history]
    assert seen == [(0, 1), (10, 1), (20, 1), (10, 2), (20, 2), (30, 2), (99, 2)]
    assert run.history[2]["train/loss"] == 1 / 21
    assert run.history[2]["moe/layer_03/cv"] == 0.25
    assert run.history[-1]["validation/loss"] == 0.75
    assert run.config["moe"]["value"]["num_experts"] == 8
    assert run.config["attempt"]["value"] == 2
    assert (run.is_complete, run.exit_code) == (True, 0)


def test_a_server_that_vanishes_does_not_hold_the_run_up(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    with fake_wandb() as server:
        process = start(server.environment, mode="online", steps=[0, 10], hang=True)
        assert process.stdout is not None
        process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert time.monotonic() - began < 20
    assert messages.count("W&B failed") == 1
    assert len(messages.splitlines()) == 1
    (file,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert b"validation/loss" in file.read_bytes()


def test_offline_keeps_the_rows_in_the_run_folder(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    report, messages = finish(start({}, mode="offline", steps=[0, 10]))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert report["state"]["run_id"] in file.name
    assert b"moe/layer_01/max_violation" in file.read_bytes()
    assert messages == ""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({}, "there is no API key"), (DEAD, "connection|status")],
    ids=["key", "network"],
)
def test_without_a_key_or_a_network_the_rows_go_offline_and_that_is_said_once(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    report, messages = finish(start(environment, mode="online", steps=[0, 10]))
    assert report["seconds"] < 45  # W&B by itself would go on trying for 90 s
    assert messages.count("monitor.wandb.mode=online is not possible") == 1
    assert any(word in messages for word in reason.split("|"))
    assert len(messages.splitlines()) == 1
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in file.read_bytes()


def test_disabled_imports_nothing(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    report, messages = finish(start({}, mode="disabled", steps=[0, 10]))
    assert not report["imported"]
    assert messages == ""
    assert not (tmp_path / "wandb").exists()


def test_a_failing_call_is_said_once_and_never_stops_training(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenRun:
        def log(self, values: dict[str, Any]) -> None:
            raise ConnectionResetError("the service is gone")

    sink = WandbSink(WandbConfig(mode="online"))
    sink._run = BrokenRun()
    sink.on_row(row(1))
    sink.on_row(row(2))
    sink.on_stop(0)
    assert [record.getMessage() for record in caplog.records] == [
        "W&B failed (ConnectionResetError: the service is gone); nothing more is sent to it in this attempt. "
        "metrics.jsonl has every row."
    ]


def test_what_wandb_refuses_by_way_of_another_package_is_said_and_contained(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    sink = WandbSink(WandbConfig(mode="offline", tags=["x" * 65]))
    sink.on_start(RunInfo(Recipe(), tmp_path, 1, 0, 1, 1, 1, ()))  # pydantic's ValidationError
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("W&B failed (ValidationError: ")
    assert "Tag 'xxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxx' is 65 characters" in message
    sink.on_row(row(1))
    sink.on_stop(0)


ACCEPTED_BY_WANDB = [("p", ["a"]), ("p" * 128, ["t" * 64]), ("a b-c_d.e", ["ü", "a b", "1"])]
REFUSED_BY_WANDB = [
    *(("a" + letter, ["a"]) for letter in "/\\#?%:"),
    ("p" * 129, ["a"]),
    ("p", ["t" * 65]),
    ("p", ["a", ""]),
]


@pytest.mark.parametrize(("project", "tags"), ACCEPTED_BY_WANDB + REFUSED_BY_WANDB)
def test_the_rules_for_project_and_tags_are_those_of_wandb(project: str, tags: list[str]) -> None:
    import wandb

    try:
        wandb.Settings(project=project, run_tags=tags)
        is_refused = False
    except Exception:
        is_refused = True
    assert is_refused == ((project, tags) in REFUSED_BY_WANDB)
    recipe = Recipe()
    recipe.monitor.wandb = WandbConfig("offline", project, None, tags)
    assert [problem.key.startswith("monitor.wandb.") for problem in problems(recipe)] == [True] * is_refused
    recipe.monitor.wandb.mode = "disabled"
    assert not problems(recipe)


def test_a_name_or_an_entity_that_wandb_cannot_take_is_a_problem() -> None:
    recipe = Recipe(name="n" * 129)
    recipe.monitor.wandb = WandbConfig("online", "p", "a/b", [])
    assert [problem.key for problem in problems(recipe)] == ["monitor.wandb.entity", "name"]


def test_a_mistake_of_our_own_is_not_taken_for_a_failure_of_wandb() -> None:
    sink = WandbSink(WandbConfig(mode="online"))
    sink._run = object()
    with pytest.raises(AttributeError):
        sink.on_row(row(1))


def test_the_run_id_is_made_once() -> None:
    sink, other = WandbSink(WandbConfig()), WandbSink(WandbConfig())
    assert sink.state_dict() != other.state_dict()
    other.load_state_dict(sink.state_dict())
    assert sink.state_dict() == other.state_dict()


def test_a_row_becomes_grouped_keys_and_none_per_expert() -> None:
    values = flatten(row(7), {1: "layer_03"})
    assert values["train/step"] == 7
    assert values["train/losses/balance"] == 1.0
    assert values["moe/layer_03/entropy"] == 0.25
    assert values["moe/worst/cv"] == 0.5
    assert values["moe/worst/entropy"] == 0.25
    assert "moe/layer_01/cv" not in values
    assert values["moe/layer_03/router_top_probability"] == 0.25
    assert "moe/worst/router_top_probability" not in values
    assert not any("load" in key for key in values)


def test_a_figure_that_is_no_number_has_no_key() -> None:
    """A router without a distribution has no probability in any row."""
    without = row(7)
    without["moe"]["router_top_probability"] = [math.nan, 0.5]
    values = flatten(without, {0: "layer_01", 1: "layer_03"})
    assert "moe/layer_01/router_top_probability" not in values
    assert values["moe/layer_03/router_top_probability"] == 0.5
    assert values["moe/layer_01/experts_per_token"] == 0.5


def test_a_dense_row_has_no_expert_keys() -> None:
    empty: dict[str, list[float]] = {name: [] for name in row(0)["moe"]}
    values = flatten(row(7) | {"moe": empty}, {})
    assert not any(key.startswith("moe/") for key in values)


if __name__ == "__main__":
    drive(json.loads(sys.argv[1]))
