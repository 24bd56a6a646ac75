"""Ranks of test_resume: at each ZeRO stage, a run that is stopped and resumed against one that is not."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from configs.training import RunConfig
from engine.events import read_events
from engine.results.evaluate import Evaluator, Scores
from engine.saving.writer import FileQueue, Written
from engine.world import World, close_world, init_world
from tests.support.tiny_run import (
    MEAN,
    STD,
    MemoryLoader,
    Supervised,
    history,
    tiny_config,
    tiny_model,
    train_tiny,
)


@contextmanager
def slow_disk(run: Path) -> Iterator[None]:
    """No save is written before step 6 is on record, so that the first is still under way when the signal comes."""
    write_all = FileQueue.write_all

    def write_slowly(files: FileQueue) -> list[Written]:
        while ("metrics", 6) not in kinds_and_steps(run) and threading.main_thread().is_alive():
            time.sleep(0.01)
        return write_all(files)

    FileQueue.write_all = write_slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileQueue.write_all = write_all  # type: ignore[method-assign]


def kinds_and_steps(run: Path) -> list[tuple[str, int | None]]:
    return [(event["kind"], event.get("step")) for event in read_events(run / "events.jsonl")]


def config_without_average(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"ema": None})})


def check_both_weights_were_scored(averaging: Path, plain: Path) -> None:
    """Averaging changes no weight: what a run without it says of its weights is said beside the average."""
    expected, found = evaluations(plain), evaluations(averaging)
    assert sorted(found) == sorted(expected) == [5, 10]
    for step, values in found.items():
        assert len(values) == 2 * len(expected[step]), values
        for name, value in expected[step].items():
            assert values[name.replace("val/", "val_raw/")] == value, (step, name, values)
            assert name != "val/loss" or values[name] != value, (step, values)


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    events = read_events(run / "events.jsonl")
    return {event["step"]: event["values"] for event in events if event["kind"] == "evaluation"}


def check_scores_are_those_of(weights: dict[str, Tensor], scores: Scores) -> None:
    """The same model in one process gives as many right answers and, but for rounding, the same loss."""
    alone = scored_alone(weights)
    assert (scores.num_images, scores.top1, scores.top5) == (alone.num_images, alone.top1, alone.top5)
    assert math.isclose(scores.loss, alone.loss, rel_tol=1e-5), (scores, alone)


def scored_alone(weights: dict[str, Tensor]) -> Scores:
    """Scores of these weights by a model in one process, on all images at once."""
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    loader, model = MemoryLoader(alone), tiny_model().eval()
    model.load_state_dict(weights)
    batches = [loader.batch(1000), loader.batch(1001)]
    return Evaluator(batches=batches, mean=MEAN, std=STD, world=alone).scores(model)


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
        with slow_disk(cut):
            stopped, _ = train_tiny(cut, config, world, Supervised(stop_rank_1))
        assert (stopped.step, stopped.exit_code) == (6, 75), stopped
        if world.is_main:
            events = kinds_and_steps(cut)
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
        plain = folder / f"plain{stage}"
        train_tiny(plain, config_without_average(config), world, Supervised())
        if world.is_main:
            check_both_weights_were_scored(whole, plain)
            assert finished.scores is not None
            check_scores_are_those_of(expected, finished.scores)
    close_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
