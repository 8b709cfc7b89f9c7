"""Slurm's accounting for tests: a MariaDB and a slurmdbd of their own, so that sacct answers."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from own_processes import wait_for

CONFIGURATION = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=test
StorageLoc=slurm_acct
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


class Accounting:
    """The database and the daemon before it, below the folder of a cluster."""

    def __init__(self, folder: Path, munge: Path, port: int) -> None:
        """`port`, and the next one, are free."""
        self.folder, self.munge, self.port = folder / "accounting", munge, port
        self.configuration = [
            f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={port}\nAccountingStoragePass={munge}\n",
            "AccountingStorageEnforce=associations\n",
        ]
        self._cluster = folder
        self._database: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str]) -> None:
        """Start both; slurmdbd must answer before slurmctld starts, and must know who may submit."""
        data = self.folder / "data"
        data.mkdir(parents=True)
        shutil.chown(self.folder, "mysql")
        shutil.chown(data, "mysql")
        self._start_database(data)
        self._start_daemon()
        manage = ["sacctmgr", "--immediate"]
        surroundings = {**os.environ, **environment}
        wait_for(lambda: _ends_well([*manage, "show", "cluster"], surroundings), every_s=0.1, timeout_s=20)
        for words in (["cluster", "test"], ["account", "physics", "cluster=test"]):
            subprocess.run([*manage, "add", *words], env=surroundings, check=True, capture_output=True)
        # root is a user of its own from the start, with an account: this one is as good as it.
        words = ["user", "root", "account=physics", "cluster=test"]
        subprocess.run([*manage, "add", *words], env=surroundings, check=False, capture_output=True)

    def stop(self) -> None:
        """End both."""
        for process in (self._daemon, self._database):
            if process is not None:
                process.send_signal(signal.SIGKILL)
                process.wait()

    def _start_database(self, data: Path) -> None:
        own = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
        install = ["mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(install, check=True, capture_output=True)
        socket_path = self.folder / "socket"
        place = [f"--socket={socket_path}", f"--port={self.port + 1}", "--bind-address=127.0.0.1"]
        sizes = ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        self._database = self._start(["mariadbd", *own, *place, *sizes], "database.log")
        ask = ["mariadb-admin", f"--socket={socket_path}", "ping"]
        wait_for(lambda: _ends_well(ask, dict(os.environ)), every_s=0.1, timeout_s=30)
        rights = "".join(
            f"create user slurm@'{host}' identified by 'test'; grant all on slurm_acct.* to slurm@'{host}';"
            for host in ("127.0.0.1", "localhost")
        )
        sql = ["mariadb", f"--socket={socket_path}", "--execute", f"create database slurm_acct; {rights}"]
        subprocess.run(sql, check=True, capture_output=True)

    def _start_daemon(self) -> None:
        path = self._cluster / "slurmdbd.conf"  # where slurm.conf lies
        host = socket.gethostname().split(".")[0]
        values = {"munge": self.munge, "host": host, "port": self.port, "database_port": self.port + 1}
        path.write_text(CONFIGURATION.format(folder=self.folder, **values))
        path.chmod(0o600)
        self._daemon = self._start(
            ["slurmdbd", "-D"], "slurmdbd.out", {"SLURM_CONF": str(self._cluster / "slurm.conf")}
        )

    def _start(
        self, command: list[str], log: str, extra: dict[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        with (self.folder / log).open("wb") as file:
            return subprocess.Popen(
                command, env={**os.environ, **(extra or {})}, stdout=file, stderr=file, start_new_session=True
            )


def missing() -> str:
    """Which packages accounting needs that are not here; empty if there are all."""
    programs = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
    absent = [package for program, package in programs.items() if shutil.which(program) is None]
    return f"Slurm's accounting needs the Debian packages {', '.join(absent)}" if absent else ""


def _ends_well(command: list[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
