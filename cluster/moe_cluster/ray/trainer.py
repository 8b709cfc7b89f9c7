"""Runs one Ray Train run for one attempt: chooses a node for each worker, and switches off Ray Train's restarts."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig

from moe_cluster.contract import attempt_dir
from moe_cluster.job import Attempt
from moe_cluster.ray import workers
from moe_cluster.ray.nodes import RayNode
from moe_cluster.share import Share

NODE_LABEL = "ray.io/node-id"
WORKERS_SETTINGS = {"RAY_worker_niceness": "0"}
"""Ray gives its workers a niceness of 15, which the trainers would inherit."""
LONGEST_END_S = 20.0
"""Ray Train may wait for a lost node longer than its next attempt should."""


class _NoProcessGroup(Backend):
    """Makes no process group, which the workers' own processes do; each sees the job's GPUs on its node, as with
    torchrun."""

    share_cuda_visible_devices = True


class OwnProcessGroup(BackendConfig):
    """Replaces Ray Train's TorchConfig, which would join the actors, not their workers, to a group."""

    backend = "of the workers"

    @property
    def backend_cls(self) -> type[Backend]:
        return _NoProcessGroup


class TrainRun:
    """Runs Ray Train in a thread, so that the main thread can handle signals."""

    def __init__(self, attempt: Attempt, share: Share, nodes: Sequence[RayNode]) -> None:
        """Start `attempt` with a worker on each of `nodes`, which may repeat."""
        self.error: BaseException | None = None
        """What Ray Train raised, once it is over."""
        self._ending_since: float | None = None
        self._thread = threading.Thread(target=self._fit, args=(attempt, share, nodes), daemon=True)
        self._thread.start()

    @property
    def is_ending(self) -> bool:
        """Returns whether `end` was called."""
        return self._ending_since is not None

    def end(self) -> None:
        """Limit the wait for workers that were asked to end to LONGEST_END_S."""
        self._ending_since = self._ending_since or time.monotonic()

    def wait(self, timeout_s: float) -> bool:
        """Wait for at most `timeout_s`; returns whether it has ended, or is abandoned."""
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        if self._ending_since is not None and time.monotonic() - self._ending_since > LONGEST_END_S:
            self.error = TimeoutError(f"Ray Train did not end the attempt within {LONGEST_END_S:.0f} s")
            return True
        return False

    def _fit(self, attempt: Attempt, share: Share, nodes: Sequence[RayNode]) -> None:
        try:
            _trainer(attempt, share, nodes).fit()
        except Exception as error:  # any error is the attempt's outcome
            self.error = error


def chosen_nodes(nodes: Sequence[RayNode], workers: int, share: Share) -> list[RayNode]:
    """Returns a node for every worker; those with the most room are filled first."""
    ordered = sorted(nodes, key=lambda node: (-node.room(share), node.address))
    return [node for node in ordered for _ in range(node.room(share))][:workers]


def _trainer(attempt: Attempt, share: Share, nodes: Sequence[RayNode]) -> Any:
    from ray.train.torch import TorchTrainer  # imports torch, which takes seconds

    # Ray's annotations are those of the first version of Ray Train.
    return TorchTrainer(
        workers.train,
        train_loop_config=_config(attempt),
        torch_config=OwnProcessGroup(),  # type: ignore[arg-type]
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=attempt.workers,
            use_gpu=bool(share.resources.get("GPU")),
            resources_per_worker=dict(share.resources),
            placement_strategy="STRICT_SPREAD" if share.per_node == 1 else "PACK",
            label_selector=[{NODE_LABEL: node.id} for node in nodes],
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(attempt_dir(attempt.run_dir, attempt.number).absolute()),
            worker_runtime_env={"env_vars": WORKERS_SETTINGS},
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )


def _config(attempt: Attempt) -> dict[str, Any]:
    return {
        "run_dir": str(attempt.run_dir.absolute()),
        "attempt": attempt.number,
        "module": attempt.module,
        "arguments": list(attempt.arguments),
        "environment": dict(attempt.environment),
    }
