"""slurm.conf and gres.conf of the tests' Slurm: short timeouts, two partitions of which one preempts, stand-ins for
GPUs.

A requeued job waits for the lifetime of a credential, which is two minutes by default; SlurmdTimeout is 300 s by
default.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CPUS, MEMORY_MB, GPUS = 4, 4000, 2
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=controller({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdTimeout=6
SlurmctldTimeout=6
InactiveLimit=0
KillWait=15
MinJobAge={remembered_s}
JobRequeue=1
MessageTimeout=5
AccountingStorageType=accounting_storage/{accounting}
GresTypes=gpu
DefMemPerCPU=200
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


@dataclass(frozen=True)
class Configuration:
    """What differs between clusters."""

    folder: Path
    address: str
    """Of the controller."""
    port: int
    """Of the controller."""
    nodes: Mapping[str, str]
    """Addresses by name."""
    remembered_s: int
    """How long the controller knows a job that is over."""
    accounting: Sequence[str] = ()
    """Lines about it; none: there is none."""

    def write(self) -> None:
        """Write both files, and the devices that they name."""
        kind = "slurmdbd" if self.accounting else "none"
        values = {"address": self.address, "port": self.port, "remembered_s": self.remembered_s}
        lines = [CONFIGURATION.format(folder=self.folder, accounting=kind, **values), *self.accounting]
        lines += [self._node(name) for name in self.nodes]
        everyone = f"Nodes={','.join(self.nodes)} MaxTime=INFINITE State=UP"
        lines.append(f"PartitionName=main {everyone} Default=YES PriorityTier=10 GraceTime=10\n")
        lines.append(f"PartitionName=urgent {everyone} PriorityTier=100 PreemptMode=off\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        gres = ["AutoDetect=off\n", *(self._gpus(name) for name in self.nodes)]
        (self.folder / "gres.conf").write_text("".join(gres))

    def _node(self, name: str) -> str:
        shape = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1"
        place = f"NodeAddr={self.nodes[name]} NodeHostname={name} Port=16818"
        return f"NodeName={name} {place} {shape} RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN\n"

    def _gpus(self, name: str) -> str:
        for number in range(GPUS):  # Slurm takes nothing but a device; /dev/null is 1, 3
            os.mknod(self.folder / f"spool/gpu-{name}-{number}", 0o600 | 0o020000, os.makedev(1, 3))
        return f"NodeName={name} Name=gpu File={self.folder}/spool/gpu-{name}-[0-{GPUS - 1}]\n"
