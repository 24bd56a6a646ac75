"""Ranks of the test's own process, forked in milliseconds, and an engine for them that needs no DeepSpeed."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.saving.writer import Writer
from engine.world import World

NUM_RANKS = 2


def fork_ranks(folder: Path, rank_main: Callable[[World], None], *, world_size: int = NUM_RANKS) -> list[int]:
    """Runs a function in forked ranks over gloo, which exit with 0, or 1 after an error; their process ids."""
    meeting_place = folder / "rendezvous"
    meeting_place.unlink(missing_ok=True)
    return [_fork(rank, world_size, meeting_place, rank_main) for rank in range(world_size)]


def wait_for(pids: list[int]) -> None:
    """Fails unless all exit with 0."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * len(pids), codes


def _fork(rank: int, world_size: int, meeting_place: Path, rank_main: Callable[[World], None]) -> int:
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        store = dist.FileStore(str(meeting_place), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        device, control = torch.device("cpu"), dist.group.WORLD
        rank_main(World(rank=rank, size=world_size, local_rank=rank, device=device, control=control))
        code = 0
    except BaseException:
        logging.exception("rank %d", rank)
    finally:
        sys.stdout.flush()
        os._exit(code)


class NumberEngine:
    """What a checkpoint store asks of an engine. Its weights are one number, so many bytes of it on each rank.

    It writes them in two halves, with the audit event "mirada.half" between.
    """

    stage = 2

    def __init__(self, world: World, *, num_bytes: int = 4000) -> None:
        self.weights = torch.zeros(num_bytes // 4)
        self.saved_by = 0
        """World size of the checkpoint it was loaded from."""
        self._world = world

    def save(self, folder: Path, writer: Writer) -> None:
        content = io.BytesIO()
        torch.save(self.weights, content)

        def write(path: Path) -> None:
            half = content.tell() // 2
            with path.open("wb", buffering=0) as file:
                file.write(content.getvalue()[:half])
                sys.audit("mirada.half", str(path))
                file.write(content.getvalue()[half:])

        writer.put(self._file(folder), write)

    def load(self, folder: Path, *, world_size: int) -> None:
        self.weights = torch.load(self._file(folder), weights_only=True)
        self.saved_by = world_size

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert state == {"skipped": 0}

    def _file(self, folder: Path) -> Path:
        return folder / "shards" / f"weights-{self._world.rank}.pt"
