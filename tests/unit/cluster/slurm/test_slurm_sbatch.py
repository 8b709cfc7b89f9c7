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
from moe_cluster.slurm.sbatch import array_script, script

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
GPUS = {
    "resources": Resources(nodes=2, workers_per_node=4, gpus_per_worker=1),
    "options": {"gpus-per-node": "a100:4", "mem-per-gpu": "64G"},
}
PYXIS = {
    "container-image": "nvcr.io#nvidia/pytorch:25.10-py3", "container-mounts": "/shared:/shared,/scratch",
    "container-mount-home": "no", "container-writable": "yes", "container-python": "/opt/venv/bin/python",
}  # fmt: skip
APPTAINER = {"prefix": "apptainer exec --nv --bind '/shared data' image.sif", "exclusive": "yes"}
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
        ("gpus.sh", script(replace(SMALL, **GPUS), PYTHON)),
        ("staged.sh", script(replace(SMALL, options={"stage": "/local disk/cache"}), PYTHON)),
        ("pyxis.sh", script(replace(SMALL, options=PYXIS), PYTHON)),
        ("apptainer.sh", script(replace(SMALL, options=APPTAINER), PYTHON)),
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
        ({"directives": ("--output=/etc/passwd",)}, ("conflicts with --output, which moe-train sets",)),
        ({"directives": ("--array=0-9",)}, ("conflicts with --array, which moe-train sets",)),
        (
            {"directives": ("--no-requeue",)},
            ("conflicts with --no-requeue, which moe-train sets or must not have",),
        ),
        ({"directives": ("--err=/tmp/x",)}, ("conflicts with --error, which moe-train sets",)),
        ({"directives": ("--clusters=b",)}, ("conflicts with --clusters, which moe-train sets",)),
        ({"directives": ("--test-only",)}, ("conflicts with --test-only, which moe-train sets",)),
        ({"directives": ("-o /etc/passwd",)}, ("-o /etc/passwd", "--name=value")),
        ({"after": ("1; true",)}, ("--after 1; true", "is not a valid Slurm job id")),
        ({"run_dir": Path("/shared/a\\b")}, ("backslash",)),
        ({"resources": Resources(time_limit_min=5)}, ("--time-limit 5", "lead_s")),
        ({"options": {"exclusive": "true"}}, ("--option exclusive=true: must be yes, no, user or mcs",)),
        (
            {"options": {"gpus-per-node": "4"}},
            ("gpus-per-node=4: needs --gpus-per-worker, which is 0", "--gpus-per-worker"),
        ),
        ({**GPUS, "options": {"gpus-per-node": "a100:2"}}, ("gpus-per-node=a100:2: must be 4 or KIND:4",)),
        ({**GPUS, "options": {"gpus-per-node": "4", "gres": "gpu:4"}}, ("gres=gpu:4", "leave one")),
        ({"options": {"mem-per-cpu": "4 GB"}}, ("mem-per-cpu=4 GB", "K, M, G or T")),
        ({"options": {"mem-per-gpu": "4G"}}, ("mem-per-gpu=4G: needs GPUs; add --gpus-per-worker 1",)),
        (
            {"resources": Resources(memory_gib=4), "options": {"mem-per-cpu": "4G"}},
            ("mem-per-cpu=4G: conflicts with --memory",),
        ),
        ({"options": {"container-mounts": "/a:/b"}}, ("container-mounts=/a:/b: there is no container",)),
        (
            {"options": {"container-image": "i", "container-mounts": "data:/data"}},
            ("container-mounts=data:/data", "absolute source"),
        ),
        ({"options": {"container-image": "i", "container-writable": "1"}}, ("must be yes or no",)),
        ({"options": {"container-image": "i", "prefix": "apptainer exec i"}}, ("leave one of the two out",)),
        ({"options": {"container-python": "python"}}, ("container-python=python: there is no container",)),
        ({"options": {"prefix": "apptainer exec 'a"}}, ("has an open quote",)),
        ({"options": {"prefix": "a", "launcher": "ray"}}, ("launcher=ray", "cannot run in a container")),
        ({"options": {"stage": "scratch"}}, ("--option stage=scratch: must be an absolute path",)),
        ({"setup": ("if true; then",)}, ("--setup", "is incomplete shell")),
    ],
)
def test_what_no_script_may_hold_is_refused_with_the_way_out(change: dict, parts: tuple[str, ...]) -> None:
    refused(change, *parts)


def test_a_variable_that_only_sounds_like_a_secret_is_set() -> None:
    job = replace(SMALL, environment={"TOKENIZERS_PARALLELISM": "false"})
    assert "\nexport TOKENIZERS_PARALLELISM=false\n" in script(job, PYTHON)


def test_jobs_of_an_array_share_all_but_name_folder_and_command() -> None:
    other = replace(SWEEP[1], resources=Resources(nodes=2))
    with pytest.raises(JobError, match=r"small-2e-3: must have the same resources and options as small-1e-3"):
        array_script([SWEEP[0], other], None, PYTHON)


def ended(tmp_path: Path, *setup: str) -> "subprocess.CompletedProcess[str]":
    """How a script with these lines of setup ends, whose run says `trained` and exits with 3."""
    spy = tmp_path / "python"
    spy.write_text("#!/bin/bash\necho trained; exit 3\n")
    spy.chmod(0o755)
    text = script(replace(SMALL, setup=setup), str(spy))
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7"}
    return subprocess.run(["bash"], input=text, text=True, capture_output=True, cwd=tmp_path, env=environment)


def test_a_setup_that_fails_ends_the_job_with_what_failed(tmp_path: Path) -> None:
    job = ended(tmp_path, "module() { return 4; }", "module load cuda/13", "echo later")
    assert (job.returncode, job.stdout) == (4, "")
    assert "moe-train: setup: exit code 4 of: " in job.stderr


def test_a_setup_that_a_shell_does_not_find_ends_the_job(tmp_path: Path) -> None:
    job = ended(tmp_path, "modul load cuda/13")
    assert (job.returncode, job.stdout) == (127, "")
    assert "moe-train: setup: exit code 127 of: modul load cuda/13" in job.stderr


def test_a_setup_may_ask_and_the_run_after_it_may_fail_by_itself(tmp_path: Path) -> None:
    job = ended(tmp_path, "if [ -d /nowhere ]; then false; fi", "false || true", "set -o pipefail")
    assert (job.returncode, job.stdout, job.stderr) == (3, "trained\n", "")


def test_a_trap_that_a_setup_sets_for_the_end_of_its_job_stays(tmp_path: Path) -> None:
    job = ended(tmp_path, "trap 'echo tidied' EXIT")
    assert (job.returncode, job.stdout) == (3, "trained\ntidied\n")


def test_cores_are_eight_a_gpu_unless_somebody_says_it() -> None:
    for resources, cpus in (
        (Resources(), 1),
        (Resources(gpus_per_worker=2), 16),
        (Resources(gpus_per_worker=1, workers_per_node=4), 32),
        (Resources(gpus_per_worker=1, cpus_per_worker=12), 12),
    ):
        assert f"\n#SBATCH --cpus-per-task={cpus}\n" in script(replace(SMALL, resources=resources), PYTHON)


def test_whole_nodes_are_asked_for_with_all_they_have() -> None:
    text = script(replace(SMALL, options={"exclusive": "user"}), PYTHON)
    assert "\n#SBATCH --exclusive=user\n" in text
    assert "\n#SBATCH --mem=0\n" in text
    assert "--cpus-per-task" not in text
    some = replace(SMALL, resources=Resources(memory_gib=4, cpus_per_worker=2), options={"exclusive": "yes"})
    assert "\n#SBATCH --cpus-per-task=2\n#SBATCH --exclusive\n#SBATCH --mem=4096M\n" in script(some, PYTHON)
    assert "--exclusive" not in script(replace(SMALL, options={"exclusive": "no"}), PYTHON)
