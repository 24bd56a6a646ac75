"""What a run says about itself: bytes of its event log, the time to read it again, and what ranks tell each other."""

from __future__ import annotations

import pickle
import tempfile
import time
from pathlib import Path

from engine.events import EventLog
from engine.survival.pace import Share, find_stragglers
from engine.tracking.log_reader import newest_run_event, read_pieces

_SERIES = (
    "train/loss",
    "train/task",
    "train/lr",
    "train/grad_norm",
    "train/skipped_steps",
    "perf/step_s",
    "perf/images_per_s",
    "perf/mfu",
    "perf/data_wait_fraction",
    "perf/slowest_rank",
    "perf/memory_gb",
    "data/passes/imagenet",
)
"""What a supervised run writes at each report."""
_EVENTS = 20_000


def log_costs() -> dict[str, float]:
    """Bytes of a report; microseconds to append it, and to read it for a follower that starts anew."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        log = EventLog(path)
        log.append("run", run_id="scale", config={})
        start = time.perf_counter()
        for step in range(_EVENTS):
            values = dict.fromkeys(_SERIES, (step + 1) / 7)
            log.append("metrics", step=step, images=step * 1024, values=values)
        appended = time.perf_counter()
        log.close()
        newest_run_event(Path(folder))
        found = time.perf_counter()
        num_read = sum(len(events) for events, _ in read_pieces(path, 0))
        read = time.perf_counter()
        if num_read != _EVENTS + 1:
            raise RuntimeError(f"{num_read} events were read, {_EVENTS + 1} written")
        return {
            "event_bytes": path.stat().st_size / _EVENTS,
            "append_us": (appended - start) / _EVENTS * 1e6,
            "find_us": (found - appended) / _EVENTS * 1e6,
            "read_us": (read - found) / _EVENTS * 1e6,
        }


def comparing(num_ranks: int) -> dict[str, float]:
    """What each report costs a rank where every rank tells every other its pace: bytes received, ms to compare."""
    shares = [
        Share(rank=rank, host=f"node-{rank // 8:04d}", data_wait_s=0.001 * (rank % 7), compute_s=0.2)
        for rank in range(num_ranks)
    ]
    told = [pickle.dumps(share) for share in shares]
    start = time.perf_counter()
    find_stragglers([pickle.loads(text) for text in told], step_s=0.3)
    return {
        "gather_bytes": float(max(map(len, told)) * num_ranks),
        "compare_ms": (time.perf_counter() - start) * 1e3,
    }
