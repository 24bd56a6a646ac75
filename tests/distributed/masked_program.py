"""Ranks of test_masked: losses of masked objectives at each ZeRO stage and scores of features, as JSON of rank 0."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from configs.data import DataConfig
from configs.training import ProbeConfig
from data_pipeline.index import open_index
from data_pipeline.loader import EvalLoader
from engine.objective import Objective
from engine.results.labelled_sample import LabelledSample
from engine.results.probe import FeatureEvaluator
from engine.sharding.zero import Engine, build_engine
from engine.world import World, close_world, init_world
from models.carrier import released_parts
from tests.support.masked import CHANNELS, MEAN, SIZE, STD, tiny_batch, tiny_task
from tests.support.tiny_run import GLOBAL_BATCH, tiny_config

NUM_STEPS = 6
NUM_TRAIN, NUM_VAL = 301, 203
DATA = DataConfig(train="", image_size=SIZE, channels=CHANNELS, mean=MEAN, std=STD, workers=0)


def build(task: str, world: World, **changes: Any) -> tuple[Engine, Objective]:
    model, objective = tiny_task(task)
    return build_engine(model, tiny_config(world_size=world.size, **changes), world), objective


def train(engine: Engine, objective: Objective, *, accumulation: int = 1) -> list[float]:
    """The loss of each step over all ranks."""
    world, losses = engine.world, []
    for step in range(NUM_STEPS):
        whole = tiny_batch(GLOBAL_BATCH, epoch=step, first=GLOBAL_BATCH * (step % 2))
        parts = whole.split(GLOBAL_BATCH // world.size)[world.rank].split(engine.micro_batch)
        assert len(parts) == accumulation
        total = torch.zeros(())
        for index, part in enumerate(parts):
            loss = objective(engine.model, part).total
            engine.accumulate(loss, last=index == accumulation - 1)
            total += loss.detach()
        engine.step(step, learning_rate=1e-2)
        losses.append(float(world.sum(total)) / world.size / accumulation)
    return losses


def evaluator(world: World) -> FeatureEvaluator:
    """Numbers of images that no number of ranks divides."""
    train, val = (
        LabelledSample(open_index(f"mirada://sample/{split}"), DATA, size=size)
        for split, size in (("train", NUM_TRAIN), ("test", NUM_VAL))
    )
    loaders = [
        EvalLoader(index, DATA, batch_size=64, rank=world.rank, world_size=world.size)
        for index in (train, val)
    ]
    return FeatureEvaluator(
        batches=loaders[1],
        mean=MEAN,
        std=STD,
        world=world,
        train_batches=loaders[0],
        num_train=NUM_TRAIN,
        num_classes=10,
        probe=ProbeConfig(l2=1e-2),
    )


def main() -> None:
    world = init_world()
    losses: dict[str, list[float]] = {}
    scores: dict[str, Any] = {}
    for number, task in enumerate(("mae", "simmim_swin")):
        for stage in (0, 1, 2, 3):
            accumulation = (1, 4)[(stage + number) % 2]
            engine, objective = build(task, world, stage=stage, accumulation=accumulation, ema=None)
            name = f"{task}, stage {stage}, accumulation {accumulation}"
            losses[name] = train(engine, objective, accumulation=accumulation)
        for stage in (0, 3):
            engine, objective = build(task, world, stage=stage)  # with an average of the weights
            with engine.evaluation() as model:
                scores[f"{task}, stage {stage}"] = asdict(evaluator(world).scores(model))
            train(engine, objective)
            released, weights = released_parts(engine.module, engine.release_weights())[""]
            if world.is_main:
                assert weights.keys() == released.state_dict().keys()
        engine, objective = build(task, world, stage=2, precision="bf16", ema=None)
        losses[f"{task}, bf16"] = train(engine, objective)
    if world.is_main:
        print(json.dumps({"losses": losses, "scores": scores}))
    close_world()


if __name__ == "__main__":
    sys.exit(main())
