"""python -m benchmarks.training_loops.distilling RECIPE [key=value ...] --out DIR: `mirada finetune` with a clock."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.training_loops.clock import Clocked, StepClock
from engine import session
from engine.command import parse_command
from engine.objective import Objective
from engine.sharding.zero import Engine
from engine.trainer import Trainer
from finetune.run import run


class ClockedSession(session.Session):
    """A session whose trainer says when its steps begin."""

    def trainer(self, engine: Engine, objective: Objective, **more: Any) -> Trainer:
        """The trainer of any session, with a clock around its objective."""
        return super().trainer(engine, Clocked(objective, StepClock()), **more)


def main(arguments: list[str]) -> int:
    """The program itself; it opens its session by the name that is replaced here."""
    session.Session = ClockedSession  # type: ignore[misc]
    return run(parse_command("finetune", arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
