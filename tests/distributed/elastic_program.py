"""Ranks of test_elastic: a run goes on at another number of ranks, at each sharded stage, and so does an odd model.

``elastic_program.py OUT UNTIL [--whole]``: trains every ``OUT/cutN`` until a signal after step UNTIL; with ``--whole``
also every ``OUT/wholeN`` without a stop, and what the odd models are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.training import OptimConfig
from data_pipeline.batch import Batch
from engine.objective import Loss
from engine.saving.writer import FileQueue
from engine.sharding import universal, zero
from engine.sharding.errand import Work
from engine.sharding.zero import Engine, build_engine
from engine.survival.lifeline import Lifeline
from engine.survival.watchdog import Watchdog
from engine.world import World, close_world, init_world
from tests.support.tiny_run import GLOBAL_BATCH, Supervised, tiny_config, train_tiny

STAGES = (1, 2, 3)
STEPS = 12
NAN_STEP = 2
MICRO_BATCH = 2
RATE = 1e-2
LIMIT_S, SLOW_S = 12.0, 14.0
"""The time limit of collectives and of the watchdog, and how long a conversion takes that is none of their business."""


class Recording:
    """The objective of the tiny run: notes its samples, fails to be finite at one step, and may ask for a stop."""

    def __init__(self, world: World, *, first: int, until: int | None) -> None:
        self._objective = Supervised()
        self._calls_per_step = GLOBAL_BATCH // world.size // MICRO_BATCH
        self._world = world
        self._first = first
        self._until = until
        self.ids: list[list[int]] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        step = self._first + len(self.ids) // self._calls_per_step
        self.ids.append(batch.sample_ids.tolist())
        if step + 1 == self._until and self._world.is_main:
            os.kill(os.getpid(), signal.SIGUSR1)
        loss = self._objective(model, batch)
        return Loss(total=loss.total * (float("nan") if step == NAN_STEP else 1.0), parts=loss.parts)

    def samples(self) -> dict[int, list[int]]:
        """Sample ids of each step over all ranks; all ranks together."""
        ranks, width = self._world.gather(self.ids), self._calls_per_step
        return {
            self._first + step: sorted(
                sample for ids in ranks for call in ids[step * width : (step + 1) * width] for sample in call
            )
            for step in range(len(self.ids) // width)
        }


class Odd(nn.Module):
    """A frozen layer, a weight that two layers share, buffers of both kinds, and fewer biases than padding needs."""

    def __init__(self, *, value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(6, 5)
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)
        self.register_buffer("shift", torch.full((5,), value))
        self.register_buffer("count", torch.tensor(int(value * 10)))
        self.frozen.requires_grad_(False)
        nn.init.constant_(self.frozen.weight, value)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [B, 6] to logits [B, 3]."""
        hidden = self.frozen(inputs) + self.shift
        logits: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(hidden)))))
        return logits


def main(out: Path, until: int | None, whole: bool) -> None:
    world = init_world()
    for stage in STAGES:
        if whole:
            train(out / f"whole{stage}", stage, world, first=0, until=None)
        train(out / f"cut{stage}", stage, world, first=last_step(out / f"cut{stage}"), until=until)
        for optimizer in ("adamw", "lion"):
            check_odd(out / f"{optimizer}{stage}", stage, optimizer, world, save=whole)
    if world.size == 4:
        check_a_slow_conversion_is_waited_for(out / "adamw2", world)
    close_world()


def train(folder: Path, stage: int, world: World, *, first: int, until: int | None) -> None:
    config = tiny_config(stage=stage, steps=STEPS, world_size=world.size, micro_batch=MICRO_BATCH)
    objective = Recording(world, first=first, until=until)
    outcome, weights = train_tiny(folder, config, world, objective, drop_path=0.0)
    assert outcome.step == (until or STEPS), outcome
    samples = objective.samples()
    if world.is_main:
        kept = folder / "samples.json"
        former = json.loads(kept.read_text()) if kept.exists() else {}
        kept.write_text(json.dumps(former | samples))
        torch.save(weights, folder / "weights.pt")


def check_odd(folder: Path, stage: int, optimizer: str, world: World, *, save: bool) -> None:
    """Saves the odd model after two steps, or loads it at another number of ranks and goes on just the same."""
    config = tiny_config(stage=stage, world_size=world.size)
    config = config.model_copy(
        update={"optim": OptimConfig.model_validate({"name": optimizer, "lr": RATE, "weight_decay": 0.5})}
    )
    engine = build_engine(Odd(value=0.5 if save else 0.0), config, world)
    if save:
        for step in (0, 1):
            odd_step(engine, step)
        files = FileQueue()
        engine.save(folder, files)
        files.write_all()
        world.barrier()
    else:
        engine.load(folder, world_size=2)
    found: dict[str, Any] = {"loaded": engine.release_weights()}
    with engine.evaluation() as model, torch.no_grad():
        found["evaluated"] = model(torch.ones(2, 6))
    found["losses"] = torch.tensor([odd_step(engine, step) for step in (2, 3)])
    found["released"] = engine.release_weights()
    if world.is_main and save:
        torch.save(found, folder / "found.pt")
    elif world.is_main:
        torch.testing.assert_close(found, torch.load(folder / "found.pt"), rtol=1e-5, atol=1e-6)


def check_a_slow_conversion_is_waited_for(folder: Path, world: World) -> None:
    """Longer than a collective and a watchdog would wait; it is seen to get on, so nobody takes it for a hang."""
    hasty = dist.new_group(backend="gloo", timeout=timedelta(seconds=LIMIT_S))
    engine = build_engine(Odd(value=0.0), tiny_config(stage=2, world_size=world.size), world)
    convert, run_errand, num_beats = zero._import_converter(), universal.run_errand, 0

    def convert_slowly(arguments: Namespace) -> None:
        for part in range(round(SLOW_S * 2)):
            print(f"{part} of the tensors")
            time.sleep(0.5)
        convert(arguments)

    with Lifeline(world) as lifeline:
        watchdog = Watchdog(lifeline, timeout_s=LIMIT_S, stacks=folder / f"rank_{world.rank}.stacks")

        def beat() -> None:
            nonlocal num_beats
            num_beats += 1
            watchdog.beat(0, "converting")

        def run_hastily(work: Work, world: World, *, on_progress: Callable[[], None]) -> str | None:
            world.barrier()  # with all the time that what comes before and after may take
            with watchdog.guarding(lambda reason: None):
                return run_errand(work, replace(world, control=hasty), on_progress=on_progress)

        engine.on_progress = beat
        zero._import_converter, universal.run_errand = lambda: convert_slowly, run_hastily
        try:
            engine.load(folder, world_size=2)
        finally:
            zero._import_converter, universal.run_errand = lambda: convert, run_errand
    assert num_beats >= SLOW_S / LIMIT_S
    assert torch.equal(
        engine.release_weights()["head.bias"], torch.load(folder / "found.pt")["loaded"]["head.bias"]
    )


def odd_step(engine: Engine, step: int) -> float:
    """The same batch on every rank, so that the number of ranks does not matter."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randn(8, 6, generator=generator), torch.arange(8) % 3
    loss = nn.functional.cross_entropy(engine.model(inputs), targets)
    engine.accumulate(loss, last=True)
    engine.step(step, learning_rate=RATE)
    return loss.item()


def last_step(folder: Path) -> int:
    kept = folder / "samples.json"
    return max((int(step) + 1 for step in json.loads(kept.read_text())), default=0) if kept.exists() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--until", type=int)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    main(given.out, given.until, given.whole)
