"""What SLURM refuses, in its own words, and what its user can do about it."""

from __future__ import annotations

import subprocess

from configs.cluster import ClusterConfig

_PARTITIONS = ("sinfo", "-h", "-o", "%R: %D nodes of %c CPUs, %m MB, %G, at most %l")
_ADVICE = (
    (
        "partition",
        "name one of the partitions below as 'partition' in the cluster file, or as partition=NAME",
    ),
    ("node count", "lower 'nodes' to what a partition has"),
    (
        "node configuration",
        "lower 'nodes', 'cpus_per_task', 'memory' or 'gpus_per_node' to what a partition has",
    ),
    ("Memory specification", "lower 'memory' to what the nodes of a partition have"),
    ("gres", "set 'gpus_per_node' to what the nodes of a partition have"),
    ("feature", "set 'constraint' to a feature that nodes have: sinfo -o '%N %f' lists them"),
    ("account", "name one of your accounts as 'account': sacctmgr show associations user=$USER lists them"),
    (
        "qos",
        "name a QOS you may use as 'qos': sacctmgr show associations user=$USER format=account,qos lists them",
    ),
    ("time limit", "lower 'time' to what a partition allows"),
    ("reservation", "name one of the reservations that scontrol show reservation lists"),
    ("dependency", "the job it was to follow is gone: submit all stages again"),
    (
        "contact slurm controller",
        "the cluster's controller does not answer: try again, or ask who runs the cluster",
    ),
    (
        "configuration source",
        "SLURM is not set up on this machine: submit from a login node, or set SLURM_CONF",
    ),
    ("Unrecognized option", "take that key out of 'extra' in the cluster file"),
    ("unrecognized option", "take that key out of 'extra' in the cluster file"),
)
"""Words in SLURM's message, and what to do; the first that fits."""
_NEVER = {
    "PartitionConfig": "no partition can start it as it is; lower 'nodes', 'cpus_per_task' or 'time'",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives one job; lower 'nodes'",
    "PartitionTimeLimit": "'time' is above the partition's limit; lower it",
    "BadConstraints": "no node has what 'constraint' asks for",
    "AccountNotAllowed": "the partition is not for this 'account'",
    "QOSNotAllowed": "the partition is not for this 'qos'",
    "InvalidAccount": "'account' does not exist or is not yours",
    "InvalidQOS": "'qos' does not exist or is not yours",
}
"""Reasons for which a job waits that time does not take away."""


def explain_refusal(words: str, cluster: ClusterConfig) -> str:
    """The message for a submission that sbatch refused with these words."""
    advice = next(
        (text for word, text in _ADVICE if word.lower() in words.lower()), "correct the cluster file"
    )
    said = "\n".join(f"  {line}" for line in words.strip().splitlines())
    return (
        f"SLURM refuses the job:\n{said}\n  what to do: {advice}\n{_asked(cluster)}{_partitions()}".rstrip()
    )


def will_never_start(job_id: str, cluster: ClusterConfig) -> str | None:
    """The message for a job that SLURM took though nothing can start it; None for every other."""
    reason = _ask("squeue", "-h", "-j", job_id, "-o", "%r").strip().splitlines()[:1]
    if not reason or reason[0] not in _NEVER:
        return None
    return (
        f"SLURM would keep the job waiting for ever ({reason[0]}): {_NEVER[reason[0]]}; it was cancelled again\n"
        f"{_asked(cluster)}{_partitions()}"
    ).rstrip()


def _asked(cluster: ClusterConfig) -> str:
    gpus = f", {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
    memory = f", {cluster.memory} of memory" if cluster.memory else ""
    cpus = cluster.ranks_per_node * cluster.cpus_per_task
    return (
        f"  asked for: {cluster.nodes_text} nodes of {cpus} CPUs{gpus}{memory}, "
        f"time {cluster.time}, partition {cluster.partition or '(default)'}\n"
    )


def _partitions() -> str:
    """What sinfo says there is, one line each; nothing where it does not answer."""
    return "".join(f"  there is {line}\n" for line in _ask(*_PARTITIONS).splitlines())


def _ask(*command: str) -> str:
    """What a command of SLURM prints; nothing when it fails or takes long: the message is made without it."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
