"""slurm.conf of a cluster whose nodes are all this machine."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.ports import free_port

CLUSTER_NAME = "mirada"

# On a busy machine daemons answer late, and a test asks long after a job's end what became of it.
_CONF = """\
ClusterName={name}
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
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
MessageTimeout=60
BatchStartTimeout=60
TreeWidth=65533
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
{extra}
"""


def slurm_conf(folder: Path, nodes: Sequence[str], *, cpus: int, extra: Sequence[str]) -> str:
    """The whole file, with free ports; all that SLURM keeps lies in `folder`, and `extra` lines come last."""
    host = socket.gethostname()
    port, *ports = (free_port() for _ in range(1 + len(nodes)))
    return _CONF.format(
        name=CLUSTER_NAME,
        host=host,
        port=port,
        folder=folder,
        nodes="\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=4096"
            for node, node_port in zip(nodes, ports, strict=True)
        ),
        extra="\n".join(extra),
    )
