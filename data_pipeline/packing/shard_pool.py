"""Shards over processes: the same function for each, progress counted in samples, stopped together."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing import forkserver, resource_tracker
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from data_pipeline.errors import DataError
from data_pipeline.parent_watch import end_with_parent
from data_pipeline.progress import ProgressBar

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Callable[[], None]], Result]
"""Takes a job, and a function to call after each of its samples; that raises when all must stop."""

_POLL_S = 0.2
_STRIDE = 32
"""Samples between two looks at what is shared between processes."""

_shared_count: Synchronized[int] | None = None
_shared_stop: Synchronized[int] | None = None


class Stopped(Exception):
    """Raised inside a worker whose parent was interrupted."""


def run_over_shards(
    work: Work[Job, Result],
    jobs: Sequence[Job],
    *,
    num_workers: int,
    title: str,
    num_samples: int,
) -> list[Result]:
    """`work` of each job, in the order of the jobs; the first failure ends all and is raised."""
    num_workers = min(num_workers, len(jobs))
    with ProgressBar(title, num_samples) as bar:
        if num_workers <= 1:
            return _run_here(work, jobs, bar)
        return _run_in_processes(work, jobs, num_workers, bar)


def _run_here(work: Work[Job, Result], jobs: Sequence[Job], bar: ProgressBar) -> list[Result]:
    count = 0

    def on_sample() -> None:
        nonlocal count
        count += 1
        if count % _STRIDE == 0:
            bar.update(count)

    results = [work(job, on_sample) for job in jobs]
    bar.update(count)
    return results


def _run_in_processes(
    work: Work[Job, Result], jobs: Sequence[Job], num_workers: int, bar: ProgressBar
) -> list[Result]:
    # Forked from a clean server: no locks of our threads are inherited, and heavy imports are paid once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    _start_server()
    count, stop = context.Value("Q", 0), context.Value("B", 0)
    with ProcessPoolExecutor(num_workers, context, initializer=_set_up, initargs=(count, stop)) as pool:
        futures: list[Future[Result]] = [pool.submit(_run_one, work, job) for job in jobs]
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                bar.update(count.value)
                for future in finished:
                    future.result()
        except BaseException:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _start_server() -> None:
    """Starts what forks the workers, so that Ctrl-C reaches none of them, not even one that is just being forked.

    One that dies of it breaks the pool, which then kills the others in the middle of a shard.
    """
    resource_tracker.ensure_running()  # it changes the mask as well
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up(count: Synchronized[int], stop: Synchronized[int]) -> None:
    """In each worker: Ctrl-C is the parent's, which tells the workers to stop; a worker left alone ends."""
    global _shared_count, _shared_stop
    _shared_count, _shared_stop = count, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _run_one(work: Work[Job, Result], job: Job) -> Result:
    if _shared_count is None or _shared_stop is None:
        raise DataError("a worker process was used before it was set up")
    count, stop = _shared_count, _shared_stop
    unreported = 0

    def on_sample() -> None:
        nonlocal unreported
        unreported += 1
        if unreported == _STRIDE:
            with count.get_lock():
                count.value += unreported
            unreported = 0
            if stop.value:
                raise Stopped

    result = work(job, on_sample)
    with count.get_lock():
        count.value += unreported
    return result
