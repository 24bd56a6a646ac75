"""Ranks of test_resume: at each ZeRO stage, a run that is stopped and resumed against one that is not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.events import read_events
from engine.saving.writer import FileQueue, Written
from engine.world import close_world, init_world
from tests.support.tiny_run import Supervised, history, tiny_config, train_tiny


@contextmanager
def slow_disk() -> Iterator[None]:
    """Every save takes longer than many steps, so that it is still being written when the signal comes."""
    write_all = FileQueue.write_all

    def write_slowly(files: FileQueue) -> list[Written]:
        time.sleep(0.5)
        return write_all(files)

    FileQueue.write_all = write_slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileQueue.write_all = write_all  # type: ignore[method-assign]


def main(folder: Path) -> None:
    world = init_world()

    def stop_rank_1(call: int) -> float:
        if call == 5 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return 1.0

    for stage in (0, 1, 2, 3):
        config = tiny_config(stage=stage, steps=10, world_size=world.size)
        whole, cut = folder / f"whole{stage}", folder / f"cut{stage}"
        finished, expected = train_tiny(whole, config, world, Supervised())
        assert (finished.step, finished.exit_code) == (10, 0)
        with slow_disk():
            stopped, _ = train_tiny(cut, config, world, Supervised(stop_rank_1))
        assert (stopped.step, stopped.exit_code) == (6, 75), stopped
        if world.is_main:
            events = [(event["kind"], event.get("step")) for event in read_events(cut / "events.jsonl")]
            # The signal came while the save of step 4 was being written; the stop waits for both saves.
            assert events.index(("metrics", 6)) < events.index(("checkpoint", 4)), events
            assert events[-3:] == [("checkpoint", 4), ("checkpoint", 6), ("stopped", 6)], events
        resumed, weights = train_tiny(cut, config, world, Supervised())
        assert resumed.step == 10
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        assert resumed.scores == finished.scores
        if world.is_main:
            assert history(whole) == history(cut)
            assert len(history(whole)) == 12
    close_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
