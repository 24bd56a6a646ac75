"""Loader processes: started fast and safely beside a training process, stopped by it and by nobody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data_pipeline.errors import DataError
from data_pipeline.parent_watch import end_with_parent
from data_pipeline.pixels.decode import limit_threads

T = TypeVar("T")

# What SLURM and users send to a whole job: only the training process may decide what follows from it.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def make_loader(
    dataset: Dataset[T], steps: Iterable[int], *, workers: int, prefetch: int, persistent: bool
) -> DataLoader[T | DataError]:
    """A DataLoader of dataset[step] for each of `steps`, in order, by `workers` processes (0: in this one)."""
    if workers == 0:
        return DataLoader(
            _Guarded(dataset),
            batch_size=None,
            sampler=steps,
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )
    return DataLoader(
        _Guarded(dataset),
        batch_size=None,
        sampler=steps,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=prefetch,
        persistent_workers=persistent,
        multiprocessing_context=_context(),
        worker_init_fn=_settle_worker,
        generator=torch.Generator(),  # its own, so that nothing is drawn from the model's random numbers
    )


def start_workers(loader: DataLoader[T | DataError]) -> Iterator[T | DataError]:
    """Starts a loader's workers, which then read ahead."""
    with _shielded():
        return iter(loader)


def received(items: Iterator[T | DataError]) -> Iterator[T]:
    """The items, up to a DataError a worker met, which is raised here as it was there."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                "a loader worker died while it handed over a batch; if the system ran out of memory, "
                "lower data.workers or data.prefetch"
            ) from error
        if isinstance(item, DataError):
            raise item
        yield item


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


def _context() -> Any:
    # A fork of a training process with gloo and CUDA threads can deadlock; spawn imports torch once per worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.loader"])
    with _shielded():
        forkserver.ensure_running()  # its imports go on while the caller builds the model
    return context


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
