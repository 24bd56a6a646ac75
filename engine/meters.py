"""Meter: what the steps since the last report amount to; summed on the device, read when reporting."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.objective import Loss
from engine.world import World


class Meter:
    """Means of the loss and its parts over steps and ranks, throughput, and time spent waiting for data."""

    def __init__(self, world: World, *, global_batch: int) -> None:
        self._world = world
        self._global_batch = global_batch
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._restart_clock()

    @torch.no_grad()
    def add(self, loss: Loss) -> None:
        """Takes in a micro-batch; what is not finite is left out of the means (the engine counts such steps)."""
        for name, value in (("loss", loss.total), *loss.parts.items()):
            value = value.detach().double()
            finite = torch.isfinite(value)
            pair = torch.stack([torch.where(finite, value, 0.0), finite.double()])
            self._sums[name] = pair if name not in self._sums else self._sums[name] + pair

    def step_done(self) -> None:
        """Counts an optimizer step."""
        self._steps += 1
        self._timed_steps += 1

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time within is spent waiting for the loader."""
        start = time.perf_counter()
        yield
        self._data_wait_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within belongs to no step: evaluation, checkpoints."""
        start = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """Means over ranks since the last report, and begins anew; all ranks together. NOTE: waits for the device."""
        names = sorted(self._sums)
        sums = self._world.sum(torch.stack([self._sums[name] for name in names])).cpu()
        values = {f"train/{name}": float(pair[0] / pair[1]) for name, pair in zip(names, sums, strict=True)}
        elapsed_s = max(time.perf_counter() - self._start - self._paused_s, 1e-9)
        values["perf/images_per_s"] = self._timed_steps * self._global_batch / elapsed_s
        values["perf/data_wait_fraction"] = self._data_wait_s / elapsed_s
        values["perf/memory_gb"] = _memory_gb(self._world.device)
        self._sums, self._steps = {}, 0
        self._restart_clock()
        return values

    def state_dict(self) -> dict[str, Any]:
        """The sums of the interval under way, so that its report does not show where a run was interrupted."""
        return {"sums": {name: pair.cpu() for name, pair in self._sums.items()}, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with a saved interval; its clock starts now."""
        self._sums = {name: pair.to(self._world.device) for name, pair in state["sums"].items()}
        self._steps = state["steps"]
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._start = time.perf_counter()
        self._data_wait_s = self._paused_s = 0.0
        self._timed_steps = 0


def _memory_gb(device: torch.device) -> float:
    """Most memory used so far, in 1e9 bytes: the device's, or on CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
