"""SlurmCluster: a real SLURM of several nodes on this machine, in one temporary folder, gone without a trace."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import slurm_accounting
from tests.support.daemons import Daemons, find_program
from tests.support.slurm_conf import CLUSTER_NAME, slurm_conf

DEBIAN_PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
}
_START_S = 180.0
_STOP_S = 15.0
_PATIENT_ASKS, _BETWEEN_ASKS_S = 5, 1.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """A running cluster: commands given to `run` speak to it, and to no other."""

    folder: Path
    nodes: tuple[str, ...]
    environment: dict[str, str]
    daemons: Daemons

    def run(self, *command: str, timeout_s: float = 120.0, **variables: str) -> str:
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

    def wait_until(self, condition: Callable[[], bool], *, what: str, timeout_s: float = _START_S) -> None:
        """Returns as soon as `condition` holds; raises with the daemons' last words when it never does."""
        self.daemons.wait_until(condition, what=f"SLURM: {what}", timeout_s=timeout_s)

    def node_states(self) -> dict[str, str]:
        """State of each node: ``idle``, ``allocated``, ``down*`` ..."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines())

    def job(self, job_id: str) -> dict[str, str]:
        """What slurmctld knows of a job: ``JobState``, ``Restarts``, ``NodeList``, ``Reason`` ...; {} once forgotten.

        NOTE: values with spaces are cut at the first. A busy controller refuses now and then, and is asked again.
        """
        for _ in range(_PATIENT_ASKS):
            with contextlib.suppress(subprocess.TimeoutExpired):
                answer = _answer(self, "scontrol", "-o", "show", "job", job_id)
                if answer.returncode == 0:
                    return dict(re.findall(r"(?:^|\s)([A-Za-z:/_]+)=(\S*)", answer.stdout))
                if "Invalid job id" in answer.stderr:
                    return {}
            time.sleep(_BETWEEN_ASKS_S)
        return {}

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = _START_S) -> dict[str, str]:
        """Waits until the job is ``RUNNING``, ``COMPLETED`` ..., and returns what is known of it."""
        self.wait_until(
            lambda: self.job(job_id).get("JobState") in states,
            what=f"job {job_id} in state {' or '.join(states)}",
            timeout_s=timeout_s,
        )
        return self.job(job_id)

    def wait_for_requeue(self, job_id: str, *, restarts: int, timeout_s: float = _START_S) -> None:
        """Waits until the job has been requeued so many times and holds no node any more."""

        def is_waiting() -> bool:
            known = self.job(job_id)
            return known.get("JobState") == "PENDING" and int(known.get("Restarts", 0)) >= restarts

        self.wait_until(is_waiting, what=f"requeue {restarts} of job {job_id}", timeout_s=timeout_s)

    def hurry(self, job_id: str) -> None:
        """Lets a requeued job start soon; by itself SLURM waits for two minutes.

        NOTE: not at once: a node takes a credential of the second in which it ended the job for the old one ("already
        killed, do not launch batch job"), and the job has FAILED without having run.
        """
        self.run("scontrol", "update", f"jobid={job_id}", "StartTime=now+2")

    def kill_node(self, node: str) -> None:
        """What a power cut does to a node: slurmd, its step daemons and all tasks are gone at once.

        slurmctld notices after ``SlurmdTimeout``: see `slurm_cluster`.
        """
        self.daemons.kill(node)
        mine = f"SLURMD_NODENAME={node}".encode()
        tasks = [pid for pid, environment in self.daemons.processes() if mine in environment]
        parents = {parent for pid in tasks for parent in _ancestors(pid, b"slurmstepd")}
        for pid in [*parents, *tasks]:  # the step daemons first: what they saw they would report
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def revive_node(self, node: str) -> None:
        """Starts the slurmd of a killed node again and waits until the node takes jobs."""
        self.daemons.start(node, "slurmd", "-D", "-N", node)
        self.wait_until(
            lambda: self.node_states()[node] in ("idle", "mixed", "allocated"), what=f"{node} back"
        )


def missing_for_slurm(*, accounting: bool = False) -> str | None:
    """Why no cluster can be brought up here, or None."""
    packages = {**DEBIAN_PACKAGES, **(slurm_accounting.DEBIAN_PACKAGES if accounting else {})}
    absent = [package for daemon, package in packages.items() if find_program(daemon) is None]
    if absent:
        return f"SLURM is not installed: apt-get install {' '.join(absent)}"
    if os.getuid() != 0:
        return "slurmd starts tasks for other users: this needs root"
    return None


@contextlib.contextmanager
def slurm_cluster(
    num_nodes: int = 2,
    *,
    cpus: int = 4,
    extra: str = "",
    accounting: bool = False,
    slurmd_timeout_s: int | None = None,
) -> Iterator[SlurmCluster]:
    """Brings up munge, slurmctld and `num_nodes` slurmd on free ports; `extra` lines go to the end of slurm.conf.

    With `accounting` also slurmdbd and MariaDB: then `sacct` works. `slurmd_timeout_s` is how long a node may be
    silent before it is down (SLURM's own: 300 s).
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    folder.chmod(0o755)  # other users submit too; what is secret has a mode of its own
    environment = {**_outside_any_job(os.environ), "SLURM_CONF": str(folder / "slurm.conf")}
    daemons = Daemons(folder, environment, mark="SLURM_CONF")
    nodes = tuple(f"n{k + 1}" for k in range(num_nodes))
    cluster = SlurmCluster(folder=folder, nodes=nodes, environment=environment, daemons=daemons)
    books = slurm_accounting.plan_accounting(folder) if accounting else None
    lines = [] if books is None else [books.slurm_conf]
    if slurmd_timeout_s is not None:
        lines.append(f"SlurmdTimeout={slurmd_timeout_s}")
    try:
        (folder / "slurm.conf").write_text(slurm_conf(folder, nodes, cpus=cpus, extra=[*lines, extra]))
        (folder / "state").mkdir(mode=0o700)
        _start_munge(cluster)
        if books is not None:
            slurm_accounting.start_accounting(books, daemons, cluster=CLUSTER_NAME)
        daemons.start("slurmctld", "slurmctld", "-D")
        for node in nodes:
            daemons.start(node, "slurmd", "-D", "-N", node)
        cluster.wait_until(lambda: _all_idle(cluster), what="an idle state of all nodes")
        yield cluster
    finally:
        if daemons.is_running("slurmctld"):
            _cancel_all(cluster)
        daemons.stop_all()
        shutil.rmtree(folder)


def _start_munge(cluster: SlurmCluster) -> None:
    key = cluster.folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={cluster.folder}/munge.{name}" for option, name in files.items()]
    cluster.daemons.start("munged", "munged", "--foreground", "--force", *options)
    cluster.wait_until((cluster.folder / "munge.socket").exists, what="munged's socket")


def _all_idle(cluster: SlurmCluster) -> bool:
    listed = _ask(cluster, "sinfo", "-h", "-N", "-o", "%N %T").splitlines()  # a line per node and partition
    return {tuple(line.split()) for line in listed} == {(node, "idle") for node in cluster.nodes}


def _cancel_all(cluster: SlurmCluster) -> None:
    """Ends all jobs, whoever's they are, so that no task outlives its daemon."""
    end = time.monotonic() + _STOP_S
    while (jobs := _ask(cluster, "squeue", "-h", "-o", "%A").split()) and time.monotonic() < end:
        _ask(cluster, "scancel", "--signal=KILL", "--full", *jobs)
        _ask(cluster, "scancel", *jobs)
        time.sleep(_POLL_S)


def _ask(cluster: SlurmCluster, *command: str) -> str:
    """What a command prints; nothing when it fails, or waits for a daemon that is not there."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        answer = _answer(cluster, *command)
        return answer.stdout if answer.returncode == 0 else ""
    return ""


def _answer(cluster: SlurmCluster, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, timeout=_STOP_S, check=False
    )


def _ancestors(pid: int, name: bytes) -> Iterator[int]:
    """Processes above `pid` whose command begins with `name`."""
    with contextlib.suppress(OSError):
        while pid > 1:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name):
                yield pid
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _outside_any_job(environ: os._Environ[str]) -> dict[str, str]:
    """The environment without a job that this process may itself be part of."""
    return {
        name: value for name, value in environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }
