"""What can be seen from the login node: SLURM and its partition, the shared folders, the tracking server."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from configs.cluster import ClusterConfig
from configs.finding import Finding
from launch.following.slurm_state import ask_slurm

_TIMEOUT_S = 5.0


def look_from_here(cluster: ClusterConfig, *, out: Path, tracking: str | None) -> Iterator[Finding]:
    """A finding for each; whatever fails here would make the job fail, too."""
    if cluster.kind == "slurm":
        yield _slurm(cluster)
    yield _folders(cluster, out)
    if tracking is not None and tracking.startswith("http"):
        yield _tracking(tracking)


def _slurm(cluster: ClusterConfig) -> Finding:
    """The controller answers, and the partition has nodes that are up."""
    where = [f"--partition={cluster.partition}"] if cluster.partition else []
    answer = ask_slurm("sinfo", "--noheader", *where, "--format=%R|%a|%D|%c|%G|%l|%T")
    if answer.returncode != 0:
        return Finding(
            check="slurm",
            level="fail",
            said=" ".join(answer.stderr.split()),
            advice="work on a login node (some need 'module load slurm'), or use a cluster file of kind local",
        )
    rows = [line.split("|") for line in answer.stdout.splitlines()]
    name = f"partition {cluster.partition!r}" if cluster.partition else "the cluster"
    if not rows:
        known = sorted(set(ask_slurm("sinfo", "--noheader", "--format=%R").stdout.split()))
        return Finding(
            check="slurm",
            level="fail",
            said=f"there is no {name}",
            advice=f"choose one of {', '.join(known)}",
        )
    usable = sum(
        int(row[2]) for row in rows if row[1] == "up" and not row[6].startswith(("down", "drain", "fail"))
    )
    gpus = rows[0][4].replace("(null)", "none")
    said = f"{name}: {usable} node(s) up, {rows[0][3]} cores each, GPUs: {gpus}, time limit {rows[0][5]}"
    if usable < cluster.min_nodes:
        return Finding(
            check="slurm",
            level="fail",
            said=f"{said}; {cluster.min_nodes} are asked for",
            advice="lower nodes, or name another partition: sinfo lists them",
        )
    return Finding(check="slurm", said=said)


def _folders(cluster: ClusterConfig, out: Path) -> Finding:
    """The folders under ``shared`` are there, and the run folder lies below one of them."""
    missing = [folder for folder in cluster.shared if not Path(folder).is_dir()]
    if missing:
        return Finding(
            check="folders",
            level="fail",
            said=f"shared: {', '.join(map(repr, missing))} is not here",
            advice="mount it on the login node, or correct 'shared' in the cluster file",
        )
    roots = [Path(folder).resolve() for folder in cluster.shared]
    if roots and not any(out.resolve().is_relative_to(root) for root in roots):
        return Finding(
            check="folders",
            level="fail",
            said=f"{str(out)!r} is not below {' or '.join(map(repr, cluster.shared))}",
            advice="name a folder there with --out",
        )
    return Finding(
        check="folders", said=f"{str(out)!r}" + (f", below {', '.join(cluster.shared)}" if roots else "")
    )


def _tracking(uri: str) -> Finding:
    """The server answers here: then `mirada sync --watch` can send what nodes without network cannot."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S) as answer:
            problem = "" if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        problem = f"it answers {error.code}"
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "reason", error))
    if not problem:
        return Finding(check="tracking from here", said=f"{uri} answers")
    return Finding(
        check="tracking from here",
        level="note",
        said=f"{uri} does not answer ({problem})",
        advice="start it, or correct the address; runs keep their events until it is there",
    )
