"""Meter: what the steps since the last report amount to; summed on the device, read when reporting."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.objective import Loss
from engine.survival.pace import Pace, Share, Straggler, find_stragglers
from engine.world import World


class Meter:
    """Means of the loss and its parts over steps and ranks, throughput, and how long each rank takes for what.

    With `flops_per_image` (of a training step) and the `peak_flops` of one device, in FLOP/s, also the utilization.
    """

    def __init__(
        self,
        world: World,
        *,
        global_batch: int,
        flops_per_image: float | None = None,
        peak_flops: float | None = None,
        gathers_in_forward: bool = False,
    ) -> None:
        self.stragglers: list[Straggler] = []
        """The ranks that held the others up in the interval reported last."""
        self._world = world
        self._global_batch = global_batch
        self._flops_per_image = flops_per_image
        self._peak_flops = peak_flops
        self._pace = Pace(world, gathers_in_forward=gathers_in_forward)
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
        self._pace.step_done()

    def computing(self) -> AbstractContextManager[None]:
        """Time within is this rank's own work: a forward pass and its objective."""
        return self._pace.computing()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time within is spent waiting for the loader."""
        start = time.perf_counter()
        yield
        waited_s = time.perf_counter() - start
        self._data_wait_s += waited_s
        self._pace.waited(waited_s)

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
        step_s = elapsed_s / max(self._timed_steps, 1)
        values["perf/step_s"] = step_s
        values["perf/images_per_s"] = self._global_batch / step_s
        values["perf/data_wait_fraction"] = self._data_wait_s / elapsed_s
        values |= self._utilization(step_s)
        values |= self._compare_ranks(step_s)
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
        self._pace.restart()

    def _utilization(self, step_s: float) -> dict[str, float]:
        """Model FLOPs that were done, of those the devices can do (MFU, Chowdhery et al. 2022)."""
        if self._flops_per_image is None or self._peak_flops is None:
            return {}
        flops = self._flops_per_image * self._global_batch / step_s
        return {"perf/mfu": flops / (self._peak_flops * self._world.size)}

    def _compare_ranks(self, step_s: float) -> dict[str, float]:
        if self._world.size == 1:
            return {}
        shares = self._pace.shares()
        self.stragglers = find_stragglers(shares, step_s=step_s)
        slowest = max(shares, key=_own_time)
        return {
            "perf/slowest_rank": float(slowest.rank),
            "perf/slowest_data_wait_s": slowest.data_wait_s,
            "perf/slowest_compute_s": slowest.compute_s,
            "perf/fastest_own_s": min(shares, key=_own_time).own_s,
        }

    def _restart_clock(self) -> None:
        self._start = time.perf_counter()
        self._data_wait_s = self._paused_s = 0.0
        self._timed_steps = 0


def _own_time(share: Share) -> float:
    return share.own_s


def _memory_gb(device: torch.device) -> float:
    """Most memory used so far, in 1e9 bytes: the device's, or on CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
