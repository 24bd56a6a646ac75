"""The shared file system: what one node writes, renames and locks, the others see."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from configs.finding import Finding
from engine.doctor.staff import Staff

_VISIBLE_S = 30.0
"""So long a node may take to see another's file; clients of network file systems keep what they know for seconds."""
_SLOW_FSYNC_S = 1.0
_POLL_S = 0.02


def check_shared_folder(staff: Staff, folder: Path) -> Finding:
    """A file of rank 0, and another renamed over it, are seen by every node; locks hold; fsync takes how long."""
    path = folder / "shared.probe"
    token = staff.world.broadcast(f"{os.getpid()} {time.time_ns()}")
    fsync_s = _by_main(staff, lambda: _write_whole(path, f"{token} first"))
    first_s = _seen_after(staff, path, f"{token} first")
    _by_main(staff, lambda: _write_whole(path, f"{token} second"))
    second_s = _seen_after(staff, path, f"{token} second")
    late = [node for node, s in zip(staff.nodes, second_s, strict=True) if s > _VISIBLE_S]
    unlocked = _without_locks(staff, path)
    _by_main(staff, lambda: _remove(path))
    if late:
        missing = [node for node, s in zip(staff.nodes, first_s, strict=True) if s > _VISIBLE_S]
        return Finding(
            check="shared folder",
            level="fail",
            said=f"{', '.join(dict.fromkeys(missing or late))} does not see within {_VISIBLE_S:.0f} s what "
            f"{staff.nodes[0]} {'writes' if missing else 'renames'} in {str(folder)!r}",
            advice="name a folder that all nodes mount from the same file system with --out, and under 'shared'",
        )
    said = f"seen by all nodes after {max(second_s):.2f} s at most, fsync {fsync_s * 1e3:.0f} ms"
    if unlocked:
        return Finding(
            check="shared folder",
            level="note",
            said=f"{said}, but {', '.join(unlocked)} does not see the locks of {staff.nodes[0]}",
            advice="two runs in one folder would not notice each other; mount it with locks (flock, not nolock)",
        )
    if fsync_s > _SLOW_FSYNC_S:
        return Finding(
            check="shared folder",
            level="note",
            said=said,
            advice="each checkpoint waits for several of these in the background; is there a faster file system?",
        )
    return Finding(check="shared folder", said=said)


def _by_main(staff: Staff, act: Callable[[], float]) -> float:
    """What rank 0 does while the others wait; its failure is everybody's."""
    return staff.ask(lambda: act() if staff.world.is_main else 0.0)[0]


def _write_whole(path: Path, text: str) -> float:
    """Writes aside, fsyncs, renames, as checkpoints do; returns the seconds of the fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".aside")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        start = time.perf_counter()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - start
    aside.replace(path)
    return seconds


def _remove(path: Path) -> float:
    path.unlink()
    return 0.0


def _seen_after(staff: Staff, path: Path, text: str) -> list[float]:
    """Seconds until each rank's node has read the text; more than the limit where it never did."""
    return staff.ask(lambda: _wait_for(path, text) if staff.is_leader else 0.0)


def _wait_for(path: Path, text: str) -> float:
    start = time.perf_counter()
    while (waited := time.perf_counter() - start) <= _VISIBLE_S:
        try:
            if path.read_text() == text:
                return waited
        except OSError:  # not there yet, or an old handle of a file that was replaced
            pass
        time.sleep(_POLL_S)
    return waited


def _without_locks(staff: Staff, path: Path) -> list[str]:
    """Nodes that could take a lock while rank 0 holds it."""
    held = _take_lock(path) if staff.world.is_main else None
    staff.world.barrier()
    took = False
    if staff.is_leader and not staff.world.is_main:
        mine = _take_lock(path)
        took = mine is not None
        if mine is not None:
            os.close(mine)
    answers = staff.world.gather(took)
    if held is not None:
        os.close(held)
    return [node for node, is_free in zip(staff.nodes, answers, strict=True) if is_free]


def _take_lock(path: Path) -> int | None:
    """The open file that holds it, or None where another holds it already."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
