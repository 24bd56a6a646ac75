"""python -m benchmarks.training_loops.ours RECIPE [key=value ...] --out DIR: `mirada pretrain` with a clock on it.

With $STOP_AT=N it gets a SIGTERM in its N-th step, saves and ends.
"""

from __future__ import annotations

import os
import sys

from benchmarks.training_loops.clock import Clocked, StepClock
from configs.load import load_config
from engine.command import parse_command
from engine.session import open_session
from engine.sharding.zero import build_engine
from pretrain.config import PretrainConfig
from pretrain.run import build_task


def main(arguments: list[str]) -> int:
    """The lines of `pretrain.run`."""
    command = parse_command("pretrain", arguments)
    config = load_config(PretrainConfig, command.recipe, command.overrides).config
    stop_at = int(os.environ["STOP_AT"]) if "STOP_AT" in os.environ else None
    with open_session(command, config) as session:
        model, objective = build_task(config, num_classes=len(session.index.classes))
        session.examine(model)
        engine = build_engine(model, config, session.world)
        clock = StepClock(stop_at=stop_at)
        session.trainer(engine, Clocked(objective, clock)).fit(session.stop)
        if session.world.is_main:
            clock.write(command.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
