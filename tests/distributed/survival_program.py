"""Ranks of test_survival: signals in every phase, batches that are not finite, a slow rank; and in the end a hang."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_pipeline.batch import Batch
from engine import meters
from engine.events import read_events
from engine.survival import pace
from engine.survival.lifeline import Lifeline
from engine.survival.preempt import StopSignal
from engine.trainer import Outcome, seed_ranks
from engine.world import World, init_world
from tests.support import tiny_run
from tests.support.tiny_run import (
    MemoryLoader,
    Poisoned,
    Supervised,
    Without,
    history,
    tiny_config,
    tiny_engine,
    tiny_trainer,
    train_tiny,
)


class SignalledInSave(MemoryLoader):
    """Rank 1 is sent a signal while the first checkpoint is being saved."""

    def state_dict(self) -> dict[str, int]:
        if self._world.rank == 1 and self._step == 4:
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().state_dict()


class Clock:
    """In place of the system's, by which a busy machine makes any rank the slow one; a look takes a millisecond."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 0.001
        return self.now_s


clock = Clock()


class SlowLoader(MemoryLoader):
    """Rank 1 waits for its data."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            clock.now_s += 0.1 * self._world.rank
            yield batch


def of_kind(out: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(out / "events.jsonl") if event["kind"] == kind]


def train_with(loader: type[MemoryLoader], out: Path, world: World, **changes: Any) -> Outcome:
    tiny_run.MemoryLoader = loader  # type: ignore[misc]
    outcome, _ = train_tiny(out, tiny_config(world_size=world.size, **changes), world, Supervised())
    tiny_run.MemoryLoader = MemoryLoader  # type: ignore[misc]
    return outcome


def stop_in_evaluation(out: Path, world: World) -> Outcome:
    """Rank 1 is sent SIGTERM while the model is evaluated."""
    config = tiny_config(steps=10, world_size=world.size)
    engine = tiny_engine(config, world)

    def signal_once(module: torch.nn.Module, _: Any) -> None:
        if not module.training and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    engine.module.register_forward_pre_hook(signal_once)
    seed_ranks(0, world.rank)
    with StopSignal() as stop, Lifeline(world) as lifeline:
        return tiny_trainer(out, config, world, engine, Supervised(), stop=stop, lifeline=lifeline).fit(stop)


def check_signals(folder: Path, world: World) -> None:
    config = tiny_config(steps=10, world_size=world.size)
    whole, expected = train_tiny(folder / "whole", config, world, Supervised())
    for phase, number in (("evaluation", signal.SIGTERM), ("save", signal.SIGUSR2)):
        out = folder / phase
        if phase == "evaluation":
            stopped = stop_in_evaluation(out, world)
        else:
            stopped = train_with(SignalledInSave, out, world, steps=10)
        found = (stopped.step, stopped.stopped_by, stopped.exit_code)
        assert world.gather(found) == [(5, number, 75)] * world.size, found
        resumed, weights = train_tiny(out, config, world, Supervised())
        assert resumed.scores == whole.scores
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        if world.is_main:
            assert [event["step"] for event in of_kind(out, "checkpoint")][:2] == [4, 5]
            assert history(out) == history(folder / "whole")


def check_rollback(folder: Path, world: World) -> None:
    """The loss of rank 1 alone is not finite."""
    config = tiny_config(stage=3, steps=10, world_size=world.size)
    objective = Poisoned(world, *([5, 6, 7] if world.rank == 1 else []))
    _, weights = train_tiny(folder / "poisoned", config, world, objective)
    tiny_run.MemoryLoader = Without  # type: ignore[misc]
    _, expected = train_tiny(folder / "without", config, world, Supervised())
    tiny_run.MemoryLoader = MemoryLoader  # type: ignore[misc]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    if world.is_main:
        (window,) = map(json.loads, (folder / "poisoned" / "skipped_windows.jsonl").read_text().splitlines())
        alone = World(rank=0, size=1, local_rank=0, device=world.device)
        ids = [i for step in (5, 6, 7) for i in MemoryLoader(alone).batch(step).sample_ids.tolist()]
        assert [sample["sample_id"] for sample in window["samples"]] == ids


def check_stragglers(folder: Path, world: World) -> None:
    def slow(call: int) -> float:
        clock.now_s += 0.1 * world.rank
        return 1.0

    meters.time = pace.time = clock  # type: ignore[assignment]
    config = tiny_config(steps=6, world_size=world.size, log_every=3)
    train_tiny(folder / "computes", config, world, Supervised(slow))
    train_with(SlowLoader, folder / "waits", world, steps=6, log_every=3)
    for name, longest in (("computes", "compute_s"), ("waits", "data_wait_s")):
        if world.is_main:
            events = of_kind(folder / name, "straggler")
            assert [(event["step"], event["rank"]) for event in events] == [(3, 1), (6, 1)], events
            assert all(event[longest] > 0.1 for event in events)
            values = of_kind(folder / name, "metrics")[-1]["values"]
            assert values["perf/slowest_rank"] == 1 and values[f"perf/slowest_{longest}"] > 0.1


def hang(folder: Path, world: World) -> None:
    def sleep_on_rank_1(call: int) -> float:
        if call == 3 and world.rank == 1:
            # Short from now on, and on this rank: a busy machine may hold up any other, and this one until now.
            trainer._watchdog._timeout_s = 3.0
            time.sleep(600)
        return 1.0

    config = tiny_config(steps=10, world_size=world.size)
    engine = tiny_engine(config, world)
    with StopSignal() as stop, Lifeline(world) as lifeline:
        objective = Supervised(sleep_on_rank_1)
        trainer = tiny_trainer(
            folder / "hung", config, world, engine, objective, stop=stop, lifeline=lifeline
        )
        trainer.fit(stop)


def main(folder: Path) -> None:
    world = init_world()
    check_signals(folder, world)
    check_rollback(folder, world)
    check_stragglers(folder, world)
    hang(folder, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
