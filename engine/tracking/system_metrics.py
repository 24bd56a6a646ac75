"""SystemMetrics: how busy rank 0's host is, every 10 s, as events of the log under the names that MLflow gives them.

They go through the log like every other point, so a server that is away loses none of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml

from engine.events import EventLog
from engine.tracking.log_reader import read_from

EVERY_S = 10.0
_PREFIX = "system/"

log = logging.getLogger(__name__)


class SystemMetrics:
    """A thread that appends a "system" event now and then until it is stopped; no step waits for it."""

    def __init__(self, events: EventLog, *, first: int, folder: Path, every_s: float = EVERY_S) -> None:
        self._events = events
        self._sample = first
        self._folder = folder
        self._every_s = every_s
        self._received, self._sent = _network_bytes()
        self._gpus = _open_gpus()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        psutil.cpu_percent()  # its first answer is about no time at all
        self._thread.start()

    def stop(self) -> None:
        """Returns when no further event will come."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                values = {f"{_PREFIX}{name}": round(value, 1) for name, value in self._measure()}
                self._events.append("system", sample=self._sample, values=values)
            except OSError as failure:  # a full disk, a device that fell off the bus
                log.warning("no system metrics for now: %s", failure)
                continue
            self._sample += 1

    def _measure(self) -> Iterator[tuple[str, float]]:
        yield "cpu_utilization_percentage", psutil.cpu_percent()
        memory = psutil.virtual_memory()
        yield "system_memory_usage_megabytes", memory.used / 1e6
        yield "system_memory_usage_percentage", 100 * memory.used / memory.total
        disk = psutil.disk_usage(str(self._folder))
        yield "disk_usage_percentage", disk.percent
        yield "disk_usage_megabytes", disk.used / 1e6
        yield "disk_available_megabytes", disk.free / 1e6
        received, sent = _network_bytes()
        yield "network_receive_megabytes", (received - self._received) / 1e6
        yield "network_transmit_megabytes", (sent - self._sent) / 1e6
        for index, gpu in enumerate(self._gpus):
            yield from _measure_gpu(f"gpu_{index}", gpu)


def count_samples(log_path: Path) -> int:
    """The number that the next sample of a run gets: a restart counts on."""
    samples = (event.get("sample") for event, _ in read_from(log_path, 0, containing=b'"system"'))
    return max((sample for sample in samples if isinstance(sample, int)), default=-1) + 1


def _open_gpus() -> list[object]:
    """Handles of the GPUs that NVML shows this process; none without its driver."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as failure:
        log.info("no GPU metrics: %s", failure)
        return []


def _measure_gpu(name: str, gpu: object) -> Iterator[tuple[str, float]]:
    """What the device tells of itself; virtual ones do not tell their power."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        yield f"{name}_memory_usage_percentage", 100 * memory.used / memory.total
        yield f"{name}_memory_usage_megabytes", memory.used / 1e6
        yield f"{name}_utilization_percentage", pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        watts = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
        yield f"{name}_power_usage_watts", watts
        yield f"{name}_power_usage_percentage", 1e5 * watts / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    except pynvml.NVMLError as failure:
        log.debug("%s: %s", name, failure)


def _network_bytes() -> tuple[int, int]:
    counters = psutil.net_io_counters()
    return (0, 0) if counters is None else (counters.bytes_recv, counters.bytes_sent)
