"""Accounting of a SlurmCluster: slurmdbd over a MariaDB of its own, so that `sacct` and job states are real."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemons import Daemons, find_program_or_raise
from tests.support.ports import free_port

DEBIAN_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}

_SLURM_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherFrequency=5
"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
_SMALL = ("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Where slurmdbd listens."""

    folder: Path
    port: int

    @property
    def slurm_conf(self) -> str:
        """Lines of slurm.conf that make a cluster use it."""
        return _SLURM_CONF.format(port=self.port, folder=self.folder)


def plan_accounting(folder: Path) -> Accounting:
    """Chooses a port, for slurm.conf to name before anything runs."""
    return Accounting(folder=folder, port=free_port())


def start_accounting(accounting: Accounting, daemons: Daemons, *, cluster: str) -> None:
    """Brings up MariaDB and slurmdbd, with munge running, and makes the cluster known; before slurmctld starts.

    The database listens on a socket in a folder of root's only, so it needs no password and no port.
    """
    folder = accounting.folder
    database = folder / "database"
    database.mkdir(mode=0o700)
    common = ["--no-defaults", f"--datadir={database}/tables", "--user=root"]
    _run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db")
    socket = database / "socket"
    pid_file = f"--pid-file={database}/pid"
    daemons.start(
        "mariadbd", "mariadbd", *common, *_SMALL, f"--socket={socket}", pid_file, "--skip-networking"
    )
    daemons.wait_until(socket.exists, what="MariaDB's socket")
    configuration = folder / "slurmdbd.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(_SLURMDBD_CONF.format(folder=folder, port=accounting.port))
    daemons.start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(socket))
    add = ["sacctmgr", "--immediate", "add", "cluster", cluster]
    daemons.wait_until(lambda: _succeeds(add, daemons.environment), what="slurmdbd", poll_s=0.5)


def _run(program: str, *arguments: str) -> None:
    path = find_program_or_raise(program)
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{program}: exit {result.returncode}\n{result.stdout}{result.stderr}"


def _succeeds(command: list[str], environment: dict[str, str]) -> bool:
    result = subprocess.run(
        command, env=environment, capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    return result.returncode == 0
