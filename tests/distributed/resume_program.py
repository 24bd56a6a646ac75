"""Ranks of test_resume: at each ZeRO stage, a run that is stopped and resumed against one that is not."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from engine.world import close_world, init_world
from tests.support.tiny_run import Supervised, history, tiny_config, train_tiny


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
        stopped, _ = train_tiny(cut, config, world, Supervised(stop_rank_1))
        assert (stopped.step, stopped.exit_code) == (6, 75), stopped
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
