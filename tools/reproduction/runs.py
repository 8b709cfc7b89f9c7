"""Measures arms: each (arm, seed) is one run of `moe-train run` in a process and a folder of its own, one thread each.

A run leaves one result file; its folder goes. What has a result of the same arm is not measured again, so a stopped
reproduction goes on where it was. The code must be committed: a result names its commit.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reproduction import poison
from reproduction.flops import account
from reproduction.plan import HERE, Arm, ReproductionError
from reproduction.result import Result, load, read_metrics, save

from moe_train.config.schema import Recipe
from moe_train.errors import RunError

ROOT = HERE.parents[1]
CODE = ("moe_train", "cluster", "kernels", "tools/reproduction")
"""What a result depends on."""


@dataclass(frozen=True)
class Task:
    """One run to make."""

    arm: Arm
    seed: int

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


@dataclass
class Runner:
    """Makes runs and stores their results in `folder`."""

    folder: Path
    tell: Callable[[str], None] = print
    rehearsal_steps: int | None = None
    """Every run has only so many steps, and the code need not be committed; None: measure."""
    _running: set[subprocess.Popen] = field(default_factory=set)

    def missing(self, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Task]:
        """What has no result yet, seed by seed."""
        return [Task(arm, seed) for seed in seeds for arm in arms if load(self.folder, arm, seed) is None]

    def measure(self, tasks: Sequence[Task], jobs: int) -> None:
        """Make the runs of `tasks`, `jobs` at a time. Raises RunError at the end if any failed; the others are kept."""
        failures = []
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(self._store, task): task for task in tasks}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    try:
                        outcome = future.result()
                    except RunError as error:
                        failures.append(str(error))
                        outcome = "failed"
                    self.tell(f"{done}/{len(tasks)}  {futures[future]}: {outcome}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in tuple(self._running):
                    process.terminate()
                raise
        if failures:
            raise RunError(f"{len(failures)} of {len(tasks)} runs failed\n" + "\n".join(failures))

    def _store(self, task: Task) -> str:
        result = self.run(task)
        save(result, self.folder)
        last = f"validation loss {result.validation[-1][1]:.4f}" if result.validation else "no validation"
        return f"{last}, {result.cpu_seconds:.0f} s of CPU"

    def run(self, task: Task) -> Result:
        """One run from its start. Raises RunError, with the end of its log, if it failed; divergence is a result."""
        commit = "rehearsal"
        if self.rehearsal_steps is None:
            commit = current_commit()
        else:
            task = Task(shortened(task.arm, self.rehearsal_steps), task.seed)
        recipe = task.arm.recipe(task.seed)
        with tempfile.TemporaryDirectory(prefix="reproduction-") as scratch:
            run_dir, log = Path(scratch) / "run", Path(scratch) / "log"
            arguments = self._arguments(task)
            began = time.perf_counter()
            exit_code, cpu_seconds = self._wait(task.arm, [*arguments, "--run-dir", str(run_dir)], log)
            wall_seconds = time.perf_counter() - began
            metrics = read_metrics(run_dir / "metrics.jsonl")
            ended = {event["event"] for event in metrics["events"]}
            if (exit_code and "not_finite" not in ended) or not metrics["training"]:
                raise RunError(f"{task}: ended with exit code {exit_code}: {log.read_text()[-2000:]}")
            return Result(
                arm=task.arm.name,
                seed=task.seed,
                fingerprint=task.arm.fingerprint,
                commit=commit,
                command=shlex.join(self._spoken(task.arm, arguments)),
                date=time.strftime("%Y-%m-%d"),
                machine=machine(),
                text_hash=_text_hash(run_dir),
                cpu_seconds=round(cpu_seconds, 1),
                wall_seconds=round(wall_seconds, 1),
                finished="finished" in ended,
                **_sizes(recipe),
                **metrics,
                extra=poison.read_record(run_dir),
            )

    def _arguments(self, task: Task) -> list[str]:
        base = os.path.relpath(task.arm.base, ROOT)
        seed = f"seed={task.seed}"
        return ["run", base, *task.arm.overrides, seed]

    def _spoken(self, arm: Arm, arguments: list[str]) -> list[str]:
        """The command as a reader types it, in the root of the repository."""
        script = ["python", "tools/reproduction/poison.py", arm.poison] if arm.poison else ["moe-train"]
        return [*script, *arguments]

    def _wait(self, arm: Arm, arguments: list[str], log: Path) -> tuple[int, float]:
        """Exit code and CPU seconds of one run."""
        paths = [ROOT, ROOT / "cluster", ROOT / "kernels", ROOT / "tools"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        script = [str(HERE / "poison.py"), arm.poison] if arm.poison else ["-P", "-m", "moe_train.cli"]
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *script, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self._running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            self._running.discard(process)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime


def shortened(arm: Arm, steps: int) -> Arm:
    """The same arm for a rehearsal: `steps` steps, and what counts in steps at the same share of them."""
    whole = arm.recipe(0).steps

    def within(override: str) -> str:
        key, _, value = override.partition("=")
        if not key.endswith(("_step", "_steps")):
            return override
        return f"{key}={max(int(value) * steps // whole, 1)}"

    run = (
        f"steps={steps}",
        f"log_every={steps // 2}",
        f"validate_every={steps // 2}",
        "data.validation_sequences=64",
    )
    return replace(arm, overrides=(*map(within, arm.overrides), "optim.schedule.warmup_steps=0", *run))


def current_commit() -> str:
    """The commit of the code. Raises ReproductionError where the code is not as it was committed."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    if changed:
        raise ReproductionError(
            f"the code differs from its commit ({changed.splitlines()[0].strip()}, ...), and a result must name the "
            "commit that made it; commit, or measure in a clean clone with --results DIR"
        )
    return _git("rev-parse", "HEAD")


def machine() -> str:
    """CPU and versions."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{cpu}; Python {platform.python_version()}; torch {torch.__version__}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReproductionError(f"git {arguments[0]} failed in {ROOT}: {done.stderr.strip()}")
    return done.stdout.strip()


def _text_hash(run_dir: Path) -> str:
    """Of the tokenizer that was learned from the training text: only what has the same text is compared."""
    return hashlib.sha256((run_dir / "tokenizer.json").read_bytes()).hexdigest()[:16]


def _sizes(recipe: Recipe) -> dict[str, Any]:
    """What a result says of its model, without a run."""
    from moe_train.config.capacity import capacity
    from moe_train.config.resolve import spec_of
    from moe_train.model.count import count

    spec, moe = spec_of(recipe), recipe.moe
    size, num_experts = count(spec), spec.num_experts
    slots = None
    if moe.capacity_factor is not None and num_experts:
        group = moe.group_sequences * recipe.data.sequence_length
        groups = recipe.data.global_batch // moe.group_sequences
        convention, factor, choices = moe.capacity_convention, moe.capacity_factor, moe.router.num_choices
        slots = groups * sum(
            number * capacity(convention, factor, group, number, choices, moe.min_capacity)
            for number in num_experts
        )
    return {
        "total_parameters": size.total_parameters,
        "active_parameters": size.active_parameters,
        "tokens_per_step": recipe.data.global_batch * recipe.data.sequence_length,
        "slots_per_step": slots,
        "flops": account(recipe),
    }
