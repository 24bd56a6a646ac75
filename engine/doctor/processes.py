"""What each rank has: as many neighbours, the same packages as the others, cores, memory to share, open files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from pathlib import Path

from configs.finding import Finding
from data_pipeline.storage.cache import ShardCache
from engine.doctor.staff import Staff, differing

_PACKAGES = ("torch", "torchvision", "timm", "deepspeed", "webdataset", "mlflow", "numpy")
_GB = 1e9
_LEAST_SHARED_GB = 1.0
"""Loader workers hand over batches through /dev/shm; containers often leave it 64 MB."""
_LEAST_OPEN_FILES = 1024


def check_ranks(staff: Staff, wanted_per_node: int) -> Finding:
    """As many ranks on each node as the cluster file says."""
    counts = staff.ranks_by_node
    said = f"{staff.world.size} rank(s) on {len(counts)} node(s): {_names(list(counts))}"
    wrong = [f"{node} has {count}" for node, count in counts.items() if count != wanted_per_node]
    if not wrong:
        return Finding(check="ranks", said=said)
    return Finding(
        check="ranks",
        level="fail",
        said=f"{said}, but {', '.join(wrong)} instead of {wanted_per_node}",
        advice="set tasks_per_node in the cluster file to what a node can take",
    )


def check_versions(staff: Staff) -> Finding:
    """The same Python and packages everywhere."""
    versions = staff.ask(_versions)
    said = ", ".join(f"{name} {version}" for name, version in versions[0].items())
    found = [
        f"{name} {text}"
        for name in versions[0]
        if (text := differing([of_rank[name] for of_rank in versions], staff.nodes))
    ]
    if found:
        return Finding(
            check="versions",
            level="fail",
            said=f"not the same on all nodes: {'; '.join(found)}",
            advice="install them on a file system that all nodes share, or use one container image",
        )
    missing = [name for name, version in versions[0].items() if version == "missing"]
    if missing:
        return Finding(check="versions", level="fail", said=said, advice=f"install {', '.join(missing)}")
    return Finding(check="versions", said=said)


def check_cores(staff: Staff, wanted: int) -> Finding:
    """As many cores for each rank as the cluster file says, and no more threads than cores."""
    cores = staff.ask(lambda: len(os.sched_getaffinity(0)))
    threads = staff.ask(lambda: int(os.environ.get("OMP_NUM_THREADS", "0")))
    said = f"{min(cores)} cores or more for each rank, OMP_NUM_THREADS={threads[0] or 'unset'}"
    if min(cores) < wanted:
        return Finding(
            check="cpus per task",
            level="fail",
            said=f"node {staff.nodes[cores.index(min(cores))]} gives a rank {min(cores)} cores, not {wanted}",
            advice="srun did not get --cpus-per-task, or the node has fewer: lower cpus_per_task or take other nodes",
        )
    if max(threads) > min(cores):
        return Finding(
            check="cpus per task",
            level="note",
            said=f"OMP_NUM_THREADS is {max(threads)}, and a rank has {min(cores)} cores",
            advice="leave it out of the cluster file's environment: it then follows cpus_per_task",
        )
    return Finding(check="cpus per task", said=said)


def check_room(staff: Staff) -> Finding:
    """Memory to share, open files, and room for the shard cache on each node."""
    rooms = staff.ask(_room)
    shared_gb, open_files, cache_gb = (min(column) for column in zip(*rooms, strict=True))
    said = (
        f"/dev/shm {shared_gb:.1f} GB, {open_files} open files, {cache_gb:.0f} GB for {ShardCache().folder}"
    )
    if shared_gb < _LEAST_SHARED_GB:
        node = staff.nodes[[room[0] for room in rooms].index(shared_gb)]
        return Finding(
            check="node",
            level="fail",
            said=f"/dev/shm of {node} has {shared_gb:.2f} GB free, and loader workers pass batches through it",
            advice="enlarge it (containers: --shm-size, or mount the host's /dev/shm), or set data.workers: 0",
        )
    if open_files < _LEAST_OPEN_FILES:
        return Finding(
            check="node",
            level="fail",
            said=f"a process may have {open_files} files open; many shards need {_LEAST_OPEN_FILES}",
            advice=f"add 'ulimit -n {_LEAST_OPEN_FILES}' to setup in the cluster file",
        )
    return Finding(check="node", said=said)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _room() -> tuple[float, int, float]:
    """GB of /dev/shm, open files, GB where copies of shards go."""
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        shutil.disk_usage("/dev/shm").free / _GB,
        open_files,
        shutil.disk_usage(_existing(ShardCache().folder)).free / _GB,
    )


def _existing(path: Path) -> Path:
    """The folder, or the nearest around it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _names(nodes: list[str]) -> str:
    shown = nodes if len(nodes) <= 4 else [*nodes[:3], "...", nodes[-1]]
    return ", ".join(shown)
