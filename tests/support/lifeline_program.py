"""Ranks without a model, of which something befalls one: ``lifeline_program.py OUT WHAT RANK``.

Each touches ``OUT/ready-RANK`` when all is well, and then waits for the others in a collective, or sleeps for ever.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from configs.base import ConfigError
from configs.exit_code import run_main
from engine.survival.lifeline import Lifeline
from engine.survival.watchdog import COMMUNICATING, Watchdog
from engine.world import World, close_world, init_world


def befall(what: str, world: World) -> None:
    """What happens to the one rank; the others meanwhile wait for it."""
    if what == "raises":
        raise ValueError("a bad image, say")
    if what == "misconfigured":
        raise ConfigError("no such file")
    time.sleep(600)  # "sleeps": to be killed, or to be found hanging


def main() -> None:
    out, what, victim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    logging.basicConfig(level=logging.WARNING)
    world = init_world()
    with Lifeline(world, grace_s=2.0) as lifeline:
        # Only the victim's is short: the others' would run out as well before a busy machine lets it speak.
        timeout_s = 3.0 if (what, world.rank) == ("hangs", victim) else 600.0
        watchdog = Watchdog(lifeline, timeout_s=timeout_s, stacks=out / f"rank_{world.rank}.stacks")
        with watchdog.guarding((out / f"record-{world.rank}").write_text):
            watchdog.beat(7, COMMUNICATING)
            (out / f"ready-{world.rank}").write_text(str(os.getpid()))
            if world.rank == victim:
                watchdog.beat(7, "in forward")
                befall(what, world)
            elif what == "deaf":
                time.sleep(600)  # in place of a back end that never gives up
            else:
                world.barrier()
        close_world()


if __name__ == "__main__":
    run_main(main)
