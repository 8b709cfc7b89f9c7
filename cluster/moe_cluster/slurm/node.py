"""Runs one node's share of an attempt: `python -P -m moe_cluster.slurm.node`, started by a launcher on each node.

It runs torch elastic for the workers of this node, with the guarantees of local/launcher.py: none of its processes
outlives it, and a worker gets a stop signal once it handles signals. The output of torch elastic goes to
attempts/K/launcher-NODE.log. Ranks follow the order of `--nodes`. It also exits with 0 if its workers stopped on
request: a launcher ends all nodes when one fails, and others may still be saving.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_cluster.contract import DONE, attempt_dir, node_log
from moe_cluster.job import Attempt
from moe_cluster.linux import die_with_parent
from moe_cluster.node.elastic import LOOPBACK, elastic_command, on_loopback, run_elastic, with_threads
from moe_cluster.output import protect_output
from moe_cluster.own_code import module_command
from moe_cluster.stop import stop_on_signals
from moe_cluster.watch.first_cause import read_endings, was_preempted

END_AT_ONCE = signal.SIGUSR2
"""Tells an agent to end its hanging workers without saving. Workers themselves do not handle it."""
STORE_TIMEOUT_S = 900
"""How long torch elastic waits for the other nodes: some import torch from a slow disk."""


@dataclass(frozen=True)
class Share:
    """Describes how an attempt's workers are laid out over nodes, for the command line of each agent."""

    nodes: tuple[str, ...]
    """In the order of ranks; the workers' store is on the first."""
    port: int
    """Of that store."""
    workers: tuple[int, ...]
    """On each node."""

    def command(self, attempt: Attempt, python: str = sys.executable) -> list[str]:
        """Returns the command line of an agent."""
        shape = ["--nodes", ",".join(self.nodes), "--workers", ",".join(map(str, self.workers))]
        place = [
            "--run-dir",
            str(attempt.run_dir),
            "--attempt",
            str(attempt.number),
            "--port",
            str(self.port),
        ]
        trainer = ["--module", attempt.module, "--", *attempt.arguments]
        return module_command("moe_cluster.slurm.node", *shape, *place, *trainer, python=python)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent of the node named by SLURMD_NODENAME; returns its exit code."""
    die_with_parent(os.getppid())
    options = _parser().parse_args(argv)
    share = Share(tuple(options.nodes), options.port, tuple(map(int, options.workers)))
    attempt = Attempt(
        tuple(options.arguments), sum(share.workers), options.run_dir, options.attempt, {}, options.module
    )
    index = share.nodes.index(os.environ["SLURMD_NODENAME"])
    environment = with_threads(os.environ, share.workers[index])
    environment = environment if len(share.nodes) > 1 else on_loopback(environment)
    folder = attempt_dir(attempt.run_dir, attempt.number)
    log = folder / node_log(share.nodes[index])
    end_signals: list[int] = []
    signal.signal(END_AT_ONCE, lambda number, frame: end_signals.append(number))
    with stop_on_signals(lambda sentence: None) as stop:
        command = _command(attempt, share, index)
        code = run_elastic(command, attempt, environment, log, stop, must_end=lambda: bool(end_signals))
    return DONE if code == DONE or was_preempted(folder, read_endings(log)) else code


def _command(attempt: Attempt, share: Share, index: int) -> list[str]:
    place = ["--nnodes", str(len(share.nodes)), "--node-rank", str(index)]
    meeting = ["--master-addr", _meeting_place(share), "--master-port", str(share.port)]
    patience = ["--rdzv-conf", f"timeout={STORE_TIMEOUT_S}"]
    return elastic_command(attempt, share.workers[index], [*place, *meeting, *patience])


def _meeting_place(share: Share) -> str:
    """Returns the address of the workers' store: loopback on one node, whose Slurm name may not resolve."""
    return share.nodes[0] if len(share.nodes) > 1 else LOOPBACK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -P -m moe_cluster.slurm.node", description=__doc__
    )
    parser.add_argument("--nodes", type=lambda text: text.split(","), required=True)
    parser.add_argument("--workers", type=lambda text: text.split(","), required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--module", required=True)
    parser.add_argument("arguments", nargs="*")
    return parser


if __name__ == "__main__":
    protect_output(is_result=False)
    sys.exit(main())
