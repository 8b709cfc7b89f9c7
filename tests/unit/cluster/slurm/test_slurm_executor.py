"""What submitting to Slurm leaves behind. A program of the tests stands in for sbatch."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_cluster.errors import ClusterError, JobError
from moe_cluster.job import JobSpec
from moe_cluster.slurm.executor import SlurmExecutor


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the stand-in; returns where it puts what it was given."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(answer: str) -> Path:
        path = tmp_path / "sbatch"
        path.write_text(f'#!/bin/bash\ncat >"${{0%/*}}/given"\n{answer}\n')
        path.chmod(0o755)
        return tmp_path / "given"

    return write


def jobs(folder: Path, *names: str) -> list[JobSpec]:
    return [JobSpec(name, folder / name, ("run", name)) for name in names]


def test_the_script_that_slurm_took_stays_with_the_run(tmp_path: Path, sbatch: Callable[[str], Path]) -> None:
    given = sbatch("echo '41;federated'")
    (job,) = jobs(tmp_path, "small")
    executor = SlurmExecutor({})
    assert executor.submit(job) == "41"
    assert (job.run_dir / "jobs/41.sh").read_text() == given.read_text() == executor.render(job)


def test_an_array_shows_its_output_in_the_folder_of_each_run(
    tmp_path: Path, sbatch: Callable[[str], Path]
) -> None:
    sbatch("echo 41")
    sweep = jobs(tmp_path / "sweep", "a", "b")
    executor = SlurmExecutor({})
    assert executor.submit_many(sweep, at_once=1) == ["41_0", "41_1"]
    assert "#SBATCH --array=0-1%1\n" in (tmp_path / "sweep/jobs/41.sh").read_text()
    (tmp_path / "sweep/jobs/41_1.log").write_text("step 1\nstep 2\n")
    assert list(executor.logs("41_1", sweep[1].run_dir, follow=False)) == ["step 1", "step 2"]


def test_a_sweep_of_one_is_no_array(tmp_path: Path, sbatch: Callable[[str], Path]) -> None:
    sbatch("echo 41")
    (job,) = jobs(tmp_path, "small")
    assert SlurmExecutor({}).submit_many([job], at_once=3) == ["41"]


def test_what_slurm_refuses_leaves_nothing(tmp_path: Path, sbatch: Callable[[str], Path]) -> None:
    sbatch("echo 'sbatch: error: Invalid account' >&2; exit 1")
    (job,) = jobs(tmp_path, "small")
    with pytest.raises(ClusterError, match="Slurm refused \\(Invalid account\\)"):
        SlurmExecutor({}).submit(job)
    assert list((job.run_dir / "jobs").iterdir()) == []


def test_an_array_whose_files_cannot_be_written_is_cancelled_and_named(
    tmp_path: Path, sbatch: Callable[[str], Path]
) -> None:
    sbatch("echo 41")
    (tmp_path / "scancel").write_text('#!/bin/bash\necho "$@" >"${0%/*}/cancelled"\n')
    (tmp_path / "scancel").chmod(0o755)
    sweep = jobs(tmp_path / "sweep", "a", "b")
    (sweep[1].run_dir / "jobs/41_1.log").mkdir(parents=True)  # where the link would be
    with pytest.raises(
        ClusterError, match=r"41_1\.log: cannot be written .*; its job slurm:41 was cancelled"
    ):
        SlurmExecutor({}).submit_many(sweep, at_once=None)
    assert (tmp_path / "cancelled").read_text() == "41\n"


def test_a_folder_that_cannot_be_made_is_one_sentence_and_asks_slurm_nothing(
    tmp_path: Path, sbatch: Callable[[str], Path]
) -> None:
    given = sbatch("echo 41")
    sweep = jobs(tmp_path / "sweep", "a", "b")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/jobs").touch()
    with pytest.raises(ClusterError, match=r"sweep/jobs: cannot be created .*nothing was submitted"):
        SlurmExecutor({}).submit_many(sweep, at_once=None)
    assert not given.exists()


def test_an_id_that_is_none_asks_slurm_nothing(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is not a valid Slurm job id"):
        SlurmExecutor({}).cancel("--user=root", tmp_path)
