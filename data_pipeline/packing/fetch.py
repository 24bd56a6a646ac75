"""Reading ahead: images behind URLs are fetched by threads while earlier ones are written, in the records' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

from data_pipeline.packing.record import Record, Remote

_NUM_THREADS = 16
_WINDOW = 4 * _NUM_THREADS
"""Images that may wait in memory."""

_Task = tuple[Callable[[], bytes], "Future[bytes]"]


def read_ahead(records: Sequence[Record]) -> Iterator[tuple[Record, Callable[[], bytes]]]:
    """Each record with the function that returns its bytes or raises; local files are read when it is called."""
    if not any(isinstance(record.image, Remote) for record in records):
        for record in records:
            yield record, record.image.read
        return
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    waiting: deque[tuple[Record, Future[bytes]]] = deque()
    for _ in range(_NUM_THREADS):
        # Daemons: a build that stops does not wait for servers that no longer answer.
        Thread(target=_serve, args=(tasks,), name="fetch", daemon=True).start()
    try:
        for record in records:
            future: Future[bytes] = Future()
            tasks.put((record.image.read, future))
            waiting.append((record, future))
            if len(waiting) == _WINDOW:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in range(_NUM_THREADS):
            tasks.put(None)


def _first(waiting: deque[tuple[Record, Future[bytes]]]) -> tuple[Record, Callable[[], bytes]]:
    record, future = waiting.popleft()
    return record, future.result


def _serve(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        read, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(read())
        except BaseException as fault:  # raised where the image is wanted
            future.set_exception(fault)
