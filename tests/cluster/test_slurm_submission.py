"""What reaches a real Slurm and what it says back: refusals, arrays, dependencies, accounting, names meant to harm."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_accounting
import slurm_cluster
from conftest import skip_or_fail
from own_processes import wait_for
from slurm_cluster import SlurmCluster, in_environment
from slurm_jobs import SlurmTerminal

from moe_cluster.executor import JobState
from moe_cluster.job import JobSpec, Resources
from moe_cluster.slurm.executor import SlurmExecutor

pytestmark = pytest.mark.cluster
SLURM = ("--cluster", "slurm")
HOSTILE = [
    "$(touch harm)",
    "'; touch harm; '",
    '" --uid=1 "',
    "%j %% %A",
    "two  words #",
    "späße \U0001f600",
    "-rf",
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := slurm_cluster.missing() or slurm_accounting.missing():
        skip_or_fail(reason)
    with SlurmCluster(num_nodes=2, accounting=True, remembered_s=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def terminal(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmTerminal:
    return SlurmTerminal(cluster, tmp_path_factory.mktemp("slurm"))


@pytest.fixture
def spy(tmp_path: Path) -> Path:
    """In the place of Python: writes its arguments beside itself."""
    path = tmp_path / "spy"
    path.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$WORD" >>"${0%/*}/said"\n')
    path.chmod(0o755)
    return path


def wait_until_over(executor: SlurmExecutor, job_id: str, folder: Path) -> JobState:
    wait_for(lambda: executor.status(job_id, folder).state.is_over, every_s=0.3)
    return executor.status(job_id, folder).state


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--option", "partition=nowhere"), "Invalid partition name specified"),
        (("--option", "account=nobody"), "Invalid account or account/partition combination specified"),
        (("--option", "constraint=h100"), "Invalid feature specification"),
        (("--directive=--nonsense=1",), "nonsense"),
    ],
)
def test_a_refusal_is_one_message_in_slurms_words(
    terminal: SlurmTerminal, words: tuple[str, ...], told: str
) -> None:
    error = terminal("submit", "small.yaml", *SLURM, "name=refused", *words, code=1)
    assert error.startswith("moe-train: error: sbatch: Slurm refused (")
    assert told in error
    assert error.count("\n") == 1


def test_a_controller_that_is_silent_costs_a_limited_time(
    cluster: SlurmCluster, terminal: SlurmTerminal
) -> None:
    with cluster.without_answers():
        began = time.monotonic()
        error = terminal("submit", "small.yaml", *SLURM, "name=silent", code=1)
    ways = ("Slurm does not answer within", "Slurm's controller does not answer (", "Slurm refused (")
    assert any(way in error for way in ways)
    assert time.monotonic() - began < 60


def test_a_job_that_nobody_knows_is_unknown(cluster: SlurmCluster, tmp_path: Path) -> None:
    with in_environment(cluster.environment):
        status = SlurmExecutor({}).status("999999", tmp_path)
    assert status.state == JobState.UNKNOWN
    assert "Invalid job id specified" in status.reason
    assert "sacct: no such job" in status.reason


def test_a_job_that_the_controller_forgot_is_known_to_the_accounting(
    cluster: SlurmCluster, spy: Path, tmp_path: Path
) -> None:
    executor = SlurmExecutor({"python": str(spy)})
    job = JobSpec("short", tmp_path / "run", ("run",))
    with in_environment(cluster.environment):
        job_id = executor.submit(job)
        assert wait_until_over(executor, job_id, job.run_dir) == JobState.DONE
        wait_for(lambda: not _is_remembered(cluster, job_id), every_s=1)
        assert executor.status(job_id, job.run_dir).state == JobState.DONE
        failed = JobSpec("short", tmp_path / "run", ("run",), options={"python": "/bin/false"})
        job_id = SlurmExecutor(failed.options).submit(failed)
        wait_for(lambda: not _is_remembered(cluster, job_id), every_s=1)
        status = executor.status(job_id, job.run_dir)
    assert (status.state, status.reason) == (JobState.FAILED, "FAILED, exit code 1")


@pytest.mark.parametrize("word", HOSTILE)
def test_no_name_makes_slurm_or_a_shell_do_anything(
    cluster: SlurmCluster, spy: Path, tmp_path: Path, word: str
) -> None:
    run_dir = tmp_path / word.replace("/", "")
    executor = SlurmExecutor({"python": str(spy)})
    job = JobSpec(word, run_dir, ("run", word), environment={"WORD": word})
    with in_environment(cluster.environment):
        job_id = executor.submit(job)
        assert wait_until_over(executor, job_id, run_dir) == JobState.DONE
        assert list(executor.logs(job_id, run_dir, follow=False)) == []
    assert (run_dir / f"jobs/{job_id}.log").exists()
    said = (tmp_path / "said").read_text().split("\0")[:-1]
    assert said == ["-P", "-m", "moe_train.cli", "run", word, "--launcher", "slurm", word]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({word, "said", "spy"})


def test_a_sweep_is_an_array_whose_jobs_have_folders_of_their_own(
    cluster: SlurmCluster, spy: Path, tmp_path: Path
) -> None:
    executor = SlurmExecutor({"python": str(spy)})
    jobs = [
        JobSpec(f"sweep-{k}", tmp_path / f"sweep/{k}", ("run", f"optim.lr={k}"))
        for k in ("1e-3", "2e-3", "4e-3")
    ]
    with in_environment(cluster.environment):
        ids = executor.submit_many(jobs, at_once=2)
        array = ids[0].partition("_")[0]
        assert ids == [f"{array}_{number}" for number in range(3)]
        for job, job_id in zip(jobs, ids, strict=True):
            assert wait_until_over(executor, job_id, job.run_dir) == JobState.DONE
            assert (job.run_dir / f"jobs/{job_id}.log").exists()
    said = (tmp_path / "said").read_text()
    assert [said.count(f"optim.lr={k}") for k in ("1e-3", "2e-3", "4e-3")] == [1, 1, 1]


def test_a_job_waits_for_another_and_is_cancelled_where_that_one_failed(
    cluster: SlurmCluster, spy: Path, tmp_path: Path
) -> None:
    with in_environment(cluster.environment):
        for python, expected in ((str(spy), JobState.DONE), ("/bin/false", JobState.CANCELLED)):
            first = SlurmExecutor({"python": python}).submit(JobSpec("first", tmp_path / "first", ("run",)))
            executor = SlurmExecutor({"python": str(spy)})
            second = JobSpec("second", tmp_path / "second", ("run",), after=(first,))
            assert wait_until_over(executor, executor.submit(second), second.run_dir) == expected


def test_a_run_that_can_go_on_is_queued_again_alone_or_in_an_array(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/bash\n[ -e "$5" ] && exit 0\ntouch "$5"; exit 75\n')  # $5 is the recipe
    spy.chmod(0o755)
    executor = SlurmExecutor({"python": str(spy)})
    jobs = [
        JobSpec(name, tmp_path / name, ("run", str(tmp_path / f"{name}.began"))) for name in ("a", "b", "c")
    ]
    with in_environment(cluster.environment):
        ids = [executor.submit(jobs[0]), *executor.submit_many(jobs[1:], at_once=None)]
        for job, job_id in zip(jobs, ids, strict=True):
            assert wait_until_over(executor, job_id, job.run_dir) == JobState.DONE
            # Not from the log: Slurm's own words about a requeue may be written over the script's.
            assert executor.status(job_id, job.run_dir).restarts == 1


def test_a_failed_run_is_a_failed_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    spy = tmp_path / "spy"
    spy.write_text("#!/bin/bash\nexit 2\n")
    spy.chmod(0o755)
    executor, job = SlurmExecutor({"python": str(spy)}), JobSpec("small", tmp_path / "run", ("run",))
    with in_environment(cluster.environment):
        job_id = executor.submit(job)
        assert wait_until_over(executor, job_id, job.run_dir) == JobState.FAILED
        assert "exit code 2" in executor.status(job_id, job.run_dir).reason


@pytest.mark.parametrize("option", [{}, {"gpus-per-node": "2"}, {"exclusive": "yes"}])
def test_gpus_that_are_asked_for_are_seen(
    cluster: SlurmCluster, tmp_path: Path, option: dict[str, str]
) -> None:
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/bash\necho "sees $CUDA_VISIBLE_DEVICES"\n')
    spy.chmod(0o755)
    resources = Resources(workers_per_node=2, gpus_per_worker=1, cpus_per_worker=1)
    job = JobSpec("gpus", tmp_path / "run", ("run",), resources, options=option)
    with in_environment(cluster.environment):
        executor = SlurmExecutor({"python": str(spy), **option})
        job_id = executor.submit(job)
        assert list(executor.logs(job_id, job.run_dir, follow=True)) == ["sees 0,1"]


def test_a_secret_of_the_shell_reaches_the_job_and_no_file(cluster: SlurmCluster, tmp_path: Path) -> None:
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/bash\necho "${#WANDB_API_KEY} letters"\n')
    spy.chmod(0o755)
    job = JobSpec("secret", tmp_path / "run", ("run",))
    with in_environment({**cluster.environment, "WANDB_API_KEY": "do-not-tell"}):
        executor = SlurmExecutor({"python": str(spy)})
        job_id = executor.submit(job)
        assert list(executor.logs(job_id, job.run_dir, follow=True)) == ["11 letters"]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or "do-not-tell" not in path.read_text()


def test_a_setup_that_fails_ends_its_job_with_what_failed(
    cluster: SlurmCluster, spy: Path, tmp_path: Path
) -> None:
    job = JobSpec("setup", tmp_path / "run", ("run",), setup=("echo first", "cat /nowhere", "echo later"))
    with in_environment(cluster.environment):
        executor = SlurmExecutor({"python": str(spy)})
        job_id = executor.submit(job)
        assert wait_until_over(executor, job_id, job.run_dir) == JobState.FAILED
        first, *others = executor.logs(job_id, job.run_dir, follow=False)
    assert (first, others[-1]) == ("first", "moe-train: setup: exit code 1 of: cat /nowhere")
    assert not (tmp_path / "said").exists()


def test_the_cache_is_copied_to_a_disk_of_the_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    spy, cache, staged = tmp_path / "spy", tmp_path / "cache", tmp_path / "local disk/cache"
    spy.write_text('#!/bin/bash\necho "$MOE_TRAIN_CACHE"; cat "$MOE_TRAIN_CACHE/kernels/library"\n')
    spy.chmod(0o755)
    (cache / "kernels").mkdir(parents=True)
    (cache / "kernels/library").write_text("built\n")
    job = JobSpec("staged", tmp_path / "run", ("run",), Resources(nodes=2), options={"stage": str(staged)})
    with in_environment({**cluster.environment, "MOE_TRAIN_CACHE": str(cache)}):
        executor = SlurmExecutor({"python": str(spy)})
        job_id = executor.submit(job)
        assert list(executor.logs(job_id, job.run_dir, follow=True)) == [str(staged), "built"]


APPTAINER = """\
#!/bin/bash
printf "%s\\n" "$GREETING" "${@:1:4}" >"${0%/*}/apptainer-was-told"
shift 4
exec "$@"
"""


def test_workers_run_behind_a_prefix_with_setup_and_variables_of_their_job(
    terminal: SlurmTerminal, tmp_path: Path
) -> None:
    apptainer = tmp_path / "apptainer"
    apptainer.write_text(APPTAINER)
    apptainer.chmod(0o755)
    container = ("--option", f"prefix={apptainer} exec --bind '/shared data' image.sif")
    python = ("--option", f"container-python={sys.executable}")
    job = ("--env", "NAME=world", "--setup", 'export GREETING="hello $NAME"', "--option", "exclusive=yes")
    run = terminal.submit("contained", *container, *python, *job, "--time-limit", "1:00:00", "steps=4")
    record = run.wait_for_job("COMPLETED")
    assert (run.folder / "finished.json").exists()
    told = (tmp_path / "apptainer-was-told").read_text().splitlines()
    assert told == ["hello world", "exec", "--bind", "/shared data", "image.sif"]
    assert "TimeLimit=01:00:00 " in record


def _is_remembered(cluster: SlurmCluster, job_id: str) -> bool:
    return job_id in cluster.call("squeue", "--noheader", "--states=all", "--format=%A").split()
