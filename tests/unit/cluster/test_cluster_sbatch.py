"""Scripts for Slurm: the golden ones, and whatever must not get into one."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from own_processes import wait_for

from moe_cluster.errors import JobError
from moe_cluster.job import JobSpec, Resources
from moe_cluster.sbatch import array_script, script

GOLDEN = Path(__file__).parent / "golden"
PYTHON = "/opt/moe/bin/python"
SMALL = JobSpec("small", Path("/shared/runs/small"), ("run", "/shared/small.yaml", "--workers", "2"))
LARGE = replace(
    SMALL,
    name="glam-64e",
    run_dir=Path("/shared/runs/glam 64e"),
    resources=Resources(
        nodes=8, min_nodes=6, workers_per_node=4, gpus_per_worker=1, cpus_per_worker=12, memory_gib=480,
        time_limit_min=720,
    ),
    environment={"NCCL_SOCKET_IFNAME": "ib0", "GREETING": "it's $HOME"},
    options={
        "partition": "gpu", "account": "physics", "qos": "high", "constraint": "h100&nvlink",
        "exclude": "node[7,9]", "lead_s": "600",
    },
    directives=("--mail-type=END", '--comment="two words"'),
    setup=("module load cuda/13",),
    after=("41", "42_3"),
)  # fmt: skip
SWEEP = [
    replace(SMALL, name=f"small-{k}", run_dir=Path(f"/shared/sweep/lr={k}"), command=("run", f"optim.lr={k}"))
    for k in ("1e-3", "2e-3", "4e-3")
]
HOSTILE = [
    "$(touch harm)",
    "`touch harm`",
    "'; touch harm; '",
    '"; touch harm; "',
    "a && touch harm",
    "~",
    "*",
    "a\\",
    "!",
]


def refused(change: dict, *parts: str) -> None:
    with pytest.raises(JobError) as caught:
        script(replace(SMALL, **change), PYTHON)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("small.sh", script(SMALL, PYTHON)),
        ("large.sh", script(LARGE, PYTHON)),
        ("ray.sh", script(replace(LARGE, options={"launcher": "ray"}), PYTHON)),
        ("sweep.sh", array_script(SWEEP, 2, PYTHON)),
    ],
)
def test_a_script_is_the_golden_one(name: str, text: str, tmp_path: Path) -> None:
    if os.environ.get("MOE_TRAIN_WRITE_GOLDEN") == "1":
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()
    (tmp_path / name).write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / name)], check=True)


@pytest.mark.parametrize("word", HOSTILE)
def test_nothing_from_a_recipe_is_run_by_the_shell(tmp_path: Path, word: str) -> None:
    said = tmp_path / "said"
    spy = tmp_path / "python"
    spy.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" "$WORD" >{said}\n')
    spy.chmod(0o755)
    job = replace(SMALL, command=("run", word), environment={"WORD": word})
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7"}
    text = script(job, str(spy))
    subprocess.run(["bash"], input=text, text=True, check=True, cwd=tmp_path, env=environment)
    expected = ["-P", "-m", "moe_train.cli", "run", word, "--launcher", "slurm", word]
    assert said.read_text().split("\0")[:-1] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "said"]


# It minds signals only after a while, as everything that has to be imported first.
LATE = """\
#!{python}
import pathlib, signal, sys, time
pathlib.Path("started").touch()
time.sleep(0.5)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: sys.exit(75))
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, "requeue 7\n"), (signal.SIGTERM, "")])
def test_a_run_that_only_starts_is_told_to_end_all_the_same(
    tmp_path: Path, number: int, requeued: str
) -> None:
    (tmp_path / "python").write_text(LATE.format(python=sys.executable))
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/called\n')
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "called").touch()
    (tmp_path / "job.sh").write_text(script(SMALL, str(tmp_path / "python")))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    batch = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "started").exists)
    batch.send_signal(number)
    assert batch.wait(timeout=30) == 75
    assert (tmp_path / "called").read_text() == requeued


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\0", "\x1b"])
@pytest.mark.parametrize("place", ["name", "run_dir", "command", "environment", "options", "directives"])
def test_no_value_can_begin_a_line_of_its_own(place: str, end: str) -> None:
    text = f"x{end}#SBATCH --uid=root"
    values = {
        "name": text, "run_dir": Path("/shared", text), "command": ("run", text), "environment": {"X": text},
        "options": {"partition": text}, "directives": (f"--comment={text}",),
    }  # fmt: skip
    refused({place: values[place]}, "line break")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"options": {"queue": "gpu"}}, ("--option queue=gpu", "partition")),
        ({"options": {"partition": ""}}, ("--option partition", "empty")),
        ({"options": {"lead_s": "5m"}}, ("lead_s=5m", "whole number of seconds")),
        ({"options": {"launcher": "mpi"}}, ("launcher=mpi", "slurm or ray")),
        ({"directives": ("END",)}, ("--directive END", "--name=value")),
        ({"directives": ("--output=/etc/passwd",)}, ("moe-train sets --output itself",)),
        ({"directives": ("--array=0-9",)}, ("moe-train sets --array itself",)),
        (
            {"directives": ("--no-requeue",)},
            ("moe-train sets --no-requeue itself, or relies on its absence",),
        ),
        ({"directives": ("--err=/tmp/x",)}, ("moe-train sets --error itself",)),
        ({"directives": ("--clusters=b",)}, ("moe-train sets --clusters itself",)),
        ({"directives": ("--test-only",)}, ("moe-train sets --test-only itself",)),
        ({"directives": ("-o /etc/passwd",)}, ("-o /etc/passwd", "--name=value")),
        ({"after": ("1; true",)}, ("--after 1; true", "no id")),
        ({"run_dir": Path("/shared/a\\b")}, ("backslash",)),
        ({"resources": Resources(time_limit_min=5)}, ("--time-limit 5", "lead_s")),
    ],
)
def test_what_no_script_may_hold_is_refused_with_the_way_out(change: dict, parts: tuple[str, ...]) -> None:
    refused(change, *parts)


def test_a_variable_that_only_sounds_like_a_secret_is_set() -> None:
    job = replace(SMALL, environment={"TOKENIZERS_PARALLELISM": "false"})
    assert "\nexport TOKENIZERS_PARALLELISM=false\n" in script(job, PYTHON)


def test_jobs_of_an_array_share_all_but_name_folder_and_command() -> None:
    other = replace(SWEEP[1], resources=Resources(nodes=2))
    with pytest.raises(JobError, match=r"small-2e-3: asks for other resources or options than small-1e-3"):
        array_script([SWEEP[0], other], None, PYTHON)
