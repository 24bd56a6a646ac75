"""For test_elastic: at each ZeRO stage, a run that SIGKILL ends on both ranks and its resumption, and one left alone.

``killed_program.py OUT SEED``: one process, which imports DeepSpeed, the longest part, and forks each run's ranks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import deepspeed  # noqa: F401 - once, for all ranks
import torch

from configs.data import AugmentConfig
from engine.saving.checkpoint_folder import LATEST
from engine.world import World
from tests.support.forked_ranks import NUM_RANKS, fork_ranks
from tests.support.tiny_run import Supervised, tiny_config, train_tiny

STEPS = 12


def main(out: Path, seed: int) -> None:
    draws = random.Random(seed)
    for stage in (0, 1, 2, 3):
        kill_at = draws.randrange(5, STEPS - 3)
        assert run(out / f"whole{stage}", stage) == [0] * NUM_RANKS
        assert run(out / f"cut{stage}", stage, kill_at) == [-signal.SIGKILL] * NUM_RANKS
        assert run(out / f"cut{stage}", stage) == [0] * NUM_RANKS


def run(folder: Path, stage: int, kill_at: int | None = None) -> list[int]:
    """How the ranks of a run ended: exit codes, or less the number of the signal."""
    ranks = fork_ranks(folder.parent, partial(train, folder, stage, kill_at))
    return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]


def train(folder: Path, stage: int, kill_at: int | None, world: World) -> None:
    def maybe_die(call: int) -> float:
        if kill_at is not None and call >= kill_at and there_is_a_checkpoint():
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    def there_is_a_checkpoint() -> bool:
        """Whether there is one to resume from, the same on all ranks.

        On a busy machine the first save may still be on its way. It goes on at step boundaries only, by two of them at
        most, and between these its threads are given the time they take.
        """
        latest = folder / "checkpoints" / LATEST
        for thread in threading.enumerate():
            if thread.name.startswith("save-") and not latest.exists():
                thread.join()
        return world.max(int(latest.exists())) == 1

    os.environ.update(RANK=str(world.rank), LOCAL_RANK=str(world.rank), WORLD_SIZE=str(world.size))
    mixing = AugmentConfig(mixup=0.8, cutmix=1.0)
    config = tiny_config(stage=stage, steps=STEPS, world_size=world.size, augment=mixing)
    assert config.train.ema is not None
    _, weights = train_tiny(folder, config, world, Supervised(maybe_die))
    if world.is_main:
        torch.save(weights, folder / "weights.pt")
    world.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
