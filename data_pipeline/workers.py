"""Workers: loader processes beside a training process, stopped by it and by nobody else, replaced when they die."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data_pipeline.errors import DataError
from data_pipeline.parent_watch import end_with_parent
from data_pipeline.pixels.decode import limit_threads

T = TypeVar("T")

log = logging.getLogger(__name__)

_MOST_DEATHS, _CALM_STEPS = 3, 100
"""Deaths in a row after which a run gives up; so many steps without one end a row."""

_DEATH = "exited unexpectedly"  # of torch's message

# What SLURM and users send to a whole job: only the training process may decide what follows from it.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Workers(Generic[T]):
    """`num_workers` processes (0: this one) that compute dataset[step] for one step after the other, in order."""

    def __init__(self, dataset: Dataset[T], *, num_workers: int, prefetch: int, persistent: bool) -> None:
        self._span = _Span()
        self._options: dict[str, Any] = {
            "dataset": _Guarded(dataset),
            "batch_size": None,
            "sampler": self._span,
            "collate_fn": _unchanged,
            "generator": torch.Generator(),  # its own, so that nothing is drawn from the model's random numbers
        }
        if num_workers:
            self._options |= {
                "num_workers": num_workers,
                "prefetch_factor": prefetch,
                "persistent_workers": persistent,
                "multiprocessing_context": worker_context(),
                "worker_init_fn": _settle_worker,
            }
        self._loader: DataLoader[T | DataError] = DataLoader(**self._options)

    def items(self, first: int, stop: int | None = None) -> Iterator[T]:
        """dataset[first], dataset[first + 1] ... without end, or up to `stop`; the workers start now and read ahead.

        A DataError that a worker met is raised here as it was there. Workers that die (the kernel kills whom memory
        ran out for) are replaced, and nothing is lost or comes twice, unless they die again and again.
        """
        return self._received(self._start(first, stop), first, stop)

    def _received(self, items: Iterator[T | DataError], first: int, stop: int | None) -> Iterator[T]:
        step, deaths, last_death = first, 0, first
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except (EOFError, ConnectionError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and _DEATH not in str(error):
                    raise
                deaths = 1 if step - last_death >= _CALM_STEPS else deaths + 1
                last_death = step
                if deaths > _MOST_DEATHS:
                    raise RuntimeError(
                        f"loader workers died {deaths} times within {_CALM_STEPS} batches; if the system ran out of "
                        "memory (dmesg tells), lower data.workers or data.prefetch"
                    ) from error
                log.warning("%s; new workers go on at step %d (death %d)", error, step, deaths)
                items = self._restart(items, step, stop)
                continue
            if isinstance(item, DataError):
                raise item
            yield item
            step += 1

    def _start(self, first: int, stop: int | None) -> Iterator[T | DataError]:
        self._span.first, self._span.stop = first, stop
        with _shielded():
            return iter(self._loader)

    def _restart(
        self, items: Iterator[T | DataError], first: int, stop: int | None
    ) -> Iterator[T | DataError]:
        items._shutdown_workers()  # type: ignore[attr-defined]  # what torch does when it forgets them
        self._loader = DataLoader(**self._options)
        return self._start(first, stop)


def worker_context() -> Any:
    """Where workers are started from: a process that imports torch once, from now on, whatever the caller does."""
    # A fork of a training process with gloo and CUDA threads can deadlock; spawn imports torch once per worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.loader"])
    with _shielded():
        forkserver.ensure_running()  # its imports go on while the caller builds the model
    return context


class _Span:
    """The steps to compute, which change from one start of the workers to the next."""

    def __init__(self) -> None:
        self.first = 0
        self.stop: int | None = None

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first) if self.stop is None else iter(range(self.first, self.stop))


class _Guarded(Dataset[T | DataError]):
    """Hands a DataError over as an item: DataLoader would bury its message in a traceback."""

    def __init__(self, dataset: Dataset[T]) -> None:
        self._dataset = dataset

    def __getitem__(self, step: int) -> T | DataError:
        try:
            return self._dataset[step]
        except DataError as error:
            return error


@contextmanager
def _shielded() -> Iterator[None]:
    # Workers started in here inherit blocked stop signals, and do not import the program's main module.
    # The main module would bring DeepSpeed into every worker. Signals are blocked rather than ignored, so that one
    # that comes now still reaches this process; resource_tracker goes first because starting it unblocks them.
    main, previous = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _settle_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    limit_threads()
    end_with_parent()
    threading.Thread(target=_stop_only_for_parent, name="stop_only_for_parent", daemon=True).start()


def _stop_only_for_parent() -> None:
    parent = multiprocessing.parent_process()
    while True:
        received = signal.sigwaitinfo(_STOP_SIGNALS)
        if received.si_signo == signal.SIGTERM and parent is not None and received.si_pid == parent.pid:
            os._exit(0)


def _unchanged(item: T) -> T:
    return item
