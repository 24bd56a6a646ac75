"""SlurmCluster: a real SLURM of several nodes on this machine, in one temporary folder, gone without a trace."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEBIAN_PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
}
_DAEMON_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_START_S = 60.0
_STOP_S = 15.0
_POLL_S = 0.1

_CONF = """\
ClusterName=mirada
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
TreeWidth=65533
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
{extra}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """A running cluster: commands given to `run` speak to it, and to no other."""

    folder: Path
    nodes: tuple[str, ...]
    environment: dict[str, str]

    def run(self, *command: str, timeout_s: float = 60.0, **variables: str) -> str:
        """Runs a command (srun, sbatch, squeue ...) and returns what it printed; a failure is an AssertionError."""
        result = subprocess.run(
            command,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert result.returncode == 0, (
            f"{' '.join(command)}: exit {result.returncode}\n{result.stdout}{result.stderr}"
        )
        return result.stdout

    def node_states(self) -> dict[str, str]:
        """State of each node: ``idle``, ``allocated``, ``down*`` ..."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines())

    def wait_until(self, condition: Callable[[], bool], *, what: str, timeout_s: float = _START_S) -> None:
        """Returns as soon as `condition` holds; raises with the daemons' last words when it never does."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(
                    f"SLURM: {what} did not come about in {timeout_s:.0f} s\n{_last_words(self.folder)}"
                )
            time.sleep(_POLL_S)


def missing_for_slurm() -> str | None:
    """Why no cluster can be brought up here, or None."""
    absent = [package for daemon, package in DEBIAN_PACKAGES.items() if _find(daemon) is None]
    if absent:
        return f"SLURM is not installed: apt-get install {' '.join(absent)}"
    if os.getuid() != 0:
        return "slurmd starts tasks for other users: this needs root"
    return None


@contextlib.contextmanager
def slurm_cluster(num_nodes: int = 2, *, cpus: int = 4, extra: str = "") -> Iterator[SlurmCluster]:
    """Brings up munge, slurmctld and `num_nodes` slurmd on free ports; `extra` lines go to the end of slurm.conf."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    environment = {**_outside_any_job(os.environ), "SLURM_CONF": str(folder / "slurm.conf")}
    cluster = SlurmCluster(
        folder=folder, nodes=tuple(f"n{k + 1}" for k in range(num_nodes)), environment=environment
    )
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _write_configuration(cluster, cpus, extra)
        daemons.append(_start_munge(cluster))
        cluster.wait_until((folder / "munge.socket").exists, what="munged's socket")
        daemons.append(_start(cluster, "slurmctld", "-D"))
        daemons += [_start(cluster, "slurmd", "-D", "-N", node) for node in cluster.nodes]
        cluster.wait_until(lambda: _all_idle(cluster), what="an idle state of all nodes")
        yield cluster
    finally:
        _stop(cluster, daemons)
        shutil.rmtree(folder)


def _write_configuration(cluster: SlurmCluster, cpus: int, extra: str) -> None:
    (cluster.folder / "state").mkdir()
    host = socket.gethostname()
    port, *ports = _free_ports(1 + len(cluster.nodes))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=4096"
        for node, node_port in zip(cluster.nodes, ports, strict=True)
    )
    text = _CONF.format(host=host, port=port, folder=cluster.folder, nodes=nodes, extra=extra)
    (cluster.folder / "slurm.conf").write_text(text)


def _start_munge(cluster: SlurmCluster) -> subprocess.Popen[bytes]:
    key = cluster.folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={cluster.folder}/munge.{name}" for option, name in files.items()]
    return _start(cluster, "munged", "--foreground", "--force", *options)


def _start(cluster: SlurmCluster, daemon: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = _find(daemon)
    if path is None:
        raise FileNotFoundError(missing_for_slurm())
    with (cluster.folder / f"{daemon}.out").open("ab") as output:
        return subprocess.Popen(
            [path, *arguments],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _all_idle(cluster: SlurmCluster) -> bool:
    result = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode == 0 and result.stdout.split() == ["idle"] * len(cluster.nodes)


def _stop(cluster: SlurmCluster, daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the jobs, then the daemons from the last to the first, then whatever else belongs to this cluster."""
    if len(daemons) > 1:
        _cancel_all(cluster)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    end = time.monotonic() + _STOP_S
    while (left := _processes_of(cluster)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _cancel_all(cluster: SlurmCluster) -> None:
    def ask(*command: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            result = subprocess.run(
                command, env=cluster.environment, capture_output=True, text=True, timeout=_STOP_S, check=False
            )
            return result.stdout
        return ""

    ask("scancel", "--signal=KILL", "--full", "--user=root")
    ask("scancel", "--user=root")
    end = time.monotonic() + _STOP_S
    while ask("squeue", "-h") and time.monotonic() < end:
        time.sleep(_POLL_S)


def _processes_of(cluster: SlurmCluster) -> list[int]:
    """Processes that have this cluster's SLURM_CONF in their environment: daemons, steps and their tasks."""
    mark = f"SLURM_CONF={cluster.environment['SLURM_CONF']}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _outside_any_job(environ: os._Environ[str]) -> dict[str, str]:
    """The environment without a job that this process may itself be part of."""
    return {
        name: value for name, value in environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }


def _find(daemon: str) -> str | None:
    return shutil.which(daemon, path=os.pathsep.join([os.environ.get("PATH", ""), _DAEMON_PATH]))


def _free_ports(count: int) -> list[int]:
    """Ports that were all free at the same moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _last_words(folder: Path) -> str:
    texts = []
    for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")]):
        lines = log.read_text(errors="replace").splitlines()[-10:]
        texts.append("\n  ".join([f"{log.name}:", *lines]))
    return "\n".join(texts)
