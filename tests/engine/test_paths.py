"""A supernet's training that is stopped goes on with the paths that it would have had, and is scored on the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.sharding.zero import build_engine
from engine.survival.lifeline import Lifeline
from engine.survival.preempt import StopSignal
from engine.trainer import Outcome, seed_ranks
from engine.world import World
from models.supernet import Candidates, PathSwitch, path_at
from tests.support.systems import build_system
from tests.support.tiny_run import Supervised, history, tiny_config, tiny_trainer

SHAPE = (3, 3, 3, 3)


def train(
    out: Path, world: World, *, stop_at: int | None = None
) -> tuple[Outcome, dict[str, Any], list[Any]]:
    config = tiny_config(world_size=1, steps=10, ema=None)
    engine = build_engine(build_system("searched gates"), config, world)
    places = [module for module in engine.module.modules() if isinstance(module, Candidates)]
    taken = []

    def note_path(call: int) -> float:
        taken.append(tuple(place.active for place in places))
        if call == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return 1.0

    seed_ranks(config.train.seed, world.rank)
    with StopSignal() as stop, Lifeline(world) as lifeline:
        trainer = tiny_trainer(
            out,
            config,
            world,
            engine,
            Supervised(note_path),
            stop=stop,
            lifeline=lifeline,
            follow=PathSwitch(engine.module, seed=3).follow,
        )
        outcome = trainer.fit(stop)
    return outcome, engine.release_weights(), taken


@pytest.mark.parametrize(
    "stop_at", [3, 4]
)  # within a round; and where an evaluation is left to the next start
def test_a_stopped_run_ends_as_if_it_had_not_been(tmp_path: Path, world: World, stop_at: int) -> None:
    finished, expected, taken = train(tmp_path / "whole", world)
    assert taken == [path_at(step, seed=3, shape=SHAPE) for step in range(10)] and len(set(taken)) > 3
    stopped, _, first = train(tmp_path / "cut", world, stop_at=stop_at)
    resumed, weights, rest = train(tmp_path / "cut", world)
    assert (finished.step, stopped.exit_code, resumed.step) == (10, 75, 10)
    assert len(first) == stop_at + 1 and first + rest == taken
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert history(tmp_path / "whole") == history(tmp_path / "cut")
