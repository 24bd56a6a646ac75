"""Ema: an exponential moving average of a model's weights, of which each rank keeps its shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import CheckpointError
from engine.saving.writer import Writer
from engine.sharding.shards import Shard
from engine.world import World

_STARTS = "starts"
"""Metadata of a saved file: where in its flattened tensor each part begins, as JSON."""


class Ema:
    """Averages parameters and floating buffers over steps; early steps count for less of a past that is not there.

    The decay of step t is ``min(decay, (1 + t) / (10 + t))``, so that the random start is soon forgotten. The average
    is of the float32 masters, also where the model computes in fp16, and takes 4 bytes per weight on all ranks
    together. What no step changes is not averaged.
    """

    def __init__(self, shards: Sequence[Shard], world: World, *, decay: float) -> None:
        self._decay = decay
        self._world = world
        self._shards = [shard for shard in shards if not shard.frozen]
        self._average = [shard.master().clone() for shard in self._shards]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, [shard.master() for shard in self._shards], 1.0 - decay)

    @property
    def average(self) -> list[Tensor]:
        """This rank's part of the average of each tensor, float32, flat."""
        return self._average

    @property
    def parts(self) -> dict[str, Tensor]:
        """The same by the first name of the tensor."""
        return {shard.name: part for shard, part in zip(self._shards, self._average, strict=True)}

    def exchange(
        self, parts: Sequence[Tensor], around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> list[Tensor]:
        """Lets the model compute with other weights, and gives back those it had, bit for bit; all ranks together.

        `around` is entered while the weights change.
        """
        with around():
            own = [shard.live_part().clone() for shard in self._shards]
            for shard, part in zip(self._shards, parts, strict=True):
                shard.fill(part, self._world)
        return own

    def save(self, folder: Path, writer: Writer) -> None:
        """Hands a copy of this rank's parts to the writer; what every rank has whole is rank 0's to save."""
        held = [
            (shard, part)
            for shard, part in zip(self._shards, self._average, strict=True)
            if (shard.divided and shard.size) or (not shard.divided and self._world.is_main)
        ]
        copies = {shard.name: part.to("cpu", copy=True) for shard, part in held}
        starts = json.dumps({shard.name: shard.start for shard, _ in held})
        writer.put(
            folder / f"ema-{self._world.rank:05d}.safetensors",
            partial(save_file, copies, metadata={_STARTS: starts}),
        )

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Takes over a saved average, of any number of ranks; raises CheckpointError when it is of another model."""
        with ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(path, framework="pt"))
                for path in sorted(folder.glob("ema-*.safetensors"))
            ]
            starts = [json.loads(file.metadata()[_STARTS]) for file in files]
            for shard, average in zip(self._shards, self._average, strict=True):
                saved = [
                    (int(start[shard.name]), file.get_slice(shard.name))
                    for file, start in zip(files, starts, strict=True)
                    if shard.name in start
                ]
                if _read(saved, shard, average) != shard.size:
                    raise CheckpointError(
                        f"the weight average in {str(folder)!r} does not fit this model: {shard.name!r} is missing or "
                        f"shorter than {shard.start + shard.size} numbers; start the run afresh with --fresh"
                    )


def _read(saved: Sequence[tuple[int, Any]], shard: Shard, into: Tensor) -> int:
    """Copies what the saved parts have of a shard; returns how many numbers that was."""
    found = 0
    for start, part in saved:
        low = max(shard.start, start)
        high = min(shard.start + shard.size, start + part.get_shape()[0])
        if low < high:
            into[low - shard.start : high - shard.start].copy_(part[low - start : high - start])
            found += high - low
    return found
