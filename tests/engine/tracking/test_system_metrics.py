"""Samples of the host in the event log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from engine.events import EventLog, read_events
from engine.tracking.system_metrics import SystemMetrics, count_samples
from tests.support.tracked_run import wait_for


def sample(path: Path, *, count: int = 2) -> list[dict[str, float]]:
    """The values of so many samples."""
    log = EventLog(path)
    before = count_samples(path)
    metrics = SystemMetrics(log, first=before, folder=path.parent, every_s=0.05)
    wait_for(lambda: count_samples(path) >= before + count, "samples")
    metrics.stop()
    log.close()
    return [event["values"] for event in read_events(path)]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """NVML as a machine with two GPUs answers, since the tests' has none."""
    answers: dict[str, Callable[..., object]] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=20e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=90 + gpu),
        "nvmlDeviceGetPowerUsage": lambda gpu: 350_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 700_000,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    yield


def test_names_and_values_are_those_of_mlflows_own_monitors(
    tmp_path: Path, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: memory
    )  # which other processes change at any moment
    expected: dict[str, float] = {}
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor(), GPUMonitor()):
        monitor.collect_metrics()
        expected |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
    found = sample(tmp_path / "events.jsonl")[0]
    assert found.keys() == expected.keys()
    same = [name for name in expected if "gpu" in name or "memory" in name]
    assert [found[name] for name in same] == [pytest.approx(expected[name]) for name in same]


def test_a_restart_counts_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sample(path, count=2)
    (first, *_, last) = [event["sample"] for event in read_events(path)]
    sample(path, count=2)
    samples = [event["sample"] for event in read_events(path)]
    assert samples == list(range(first, len(samples)))
    assert len(samples) >= last + 3


def test_nothing_comes_after_the_stop_and_stopping_does_not_wait_for_the_next_sample(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    metrics = SystemMetrics(log, first=0, folder=tmp_path, every_s=3600.0)
    start = time.monotonic()
    metrics.stop()
    log.close()
    assert time.monotonic() - start < 60.0
    assert count_samples(tmp_path / "events.jsonl") == 0
