"""1, 2 and 4 ranks of test_contrastive: losses at ZeRO stages and scores by the names of classes, as JSON.

They are forked from one process that has imported DeepSpeed, which takes longer than all they do.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401 - once, for all ranks
import torch

from configs.data import DataConfig
from data_pipeline.index import open_index
from data_pipeline.loader import EvalLoader
from engine.objective import look_ahead
from engine.results.labelled_sample import LabelledSample
from engine.results.zero_shot import ZeroShotEvaluator
from engine.sharding.zero import Engine, build_engine
from engine.world import World
from models.carrier import companion_of, released_parts
from models.zero_shot import class_tokens
from pretrain.contrastive import Contrastive
from tests.support.captioned import captioned_batch, tiny_pairing
from tests.support.forked_ranks import fork_ranks, wait_for
from tests.support.masked import CHANNELS, MEAN, SIZE, STD
from tests.support.tiny_run import GLOBAL_BATCH, tiny_config

NUM_STEPS, NUM_VAL = 10, 103
PROMPTS = ("a photo of a {}.", "one {}")
RUNS = {1: [(0, 4)], 2: [(0, 2), (1, 1), (2, 2), (3, 1)], 4: [(2, 1), (3, 2)]}
"""ZeRO stages and accumulation, by number of ranks."""
DATA = DataConfig(train="", image_size=SIZE, channels=CHANNELS, mean=MEAN, std=STD, workers=0)
IN_SHARDS = {"zero_optimization": {"stage3_param_persistence_threshold": 50}}
"""At stage 3 on 2 ranks: of these towers every matrix is in shards, which DeepSpeed would keep whole on each rank."""


def build(world: World, *, stage: int, **changes: Any) -> tuple[Engine, Contrastive]:
    model, objective = tiny_pairing(world=world, pool="attention", pool_heads=2)
    config = tiny_config(stage=stage, world_size=world.size, ema=None, **changes)
    if stage == 3 and world.size == 2:
        config = config.model_copy(update={"zero": config.zero.model_copy(update={"extra": IN_SHARDS})})
    return build_engine(model, config, world), objective


def train(engine: Engine, objective: Contrastive) -> list[float]:
    """The loss of each step over all ranks."""
    world, losses = engine.world, []
    for step in range(NUM_STEPS):
        whole = captioned_batch(GLOBAL_BATCH, first=GLOBAL_BATCH * (step % 2))
        parts = whole.split(GLOBAL_BATCH // world.size)[world.rank].split(engine.micro_batch)
        look_ahead(objective, engine.model, parts)
        total = torch.zeros(())
        for index, part in enumerate(parts):
            loss = objective(engine.model, part).total
            engine.accumulate(loss, last=index == len(parts) - 1)
            total += loss.detach()
        engine.step(step, learning_rate=1e-2)
        losses.append(float(world.sum(total)) / world.size / len(parts))
    return losses


def evaluator(world: World, objective: Contrastive) -> ZeroShotEvaluator:
    """A number of images that no number of ranks divides."""
    index = LabelledSample(open_index("mirada://sample/test"), DATA, size=NUM_VAL)
    return ZeroShotEvaluator(
        batches=EvalLoader(index, DATA, batch_size=16, rank=world.rank, world_size=world.size),
        mean=MEAN,
        std=STD,
        world=world,
        tokens=class_tokens(index.classes, PROMPTS, objective.tokenizer),
    )


def train_and_score(world: World, out: Path) -> None:
    os.environ.update(RANK=str(world.rank), LOCAL_RANK=str(world.rank), WORLD_SIZE=str(world.size))
    losses: dict[str, list[float]] = {}
    scores: dict[str, Any] = {}
    for stage, accumulation in RUNS[world.size]:
        engine, objective = build(world, stage=stage, accumulation=accumulation)
        losses[f"stage {stage}, accumulation {accumulation}"] = train(engine, objective)
        if stage in (0, 3):
            with engine.evaluation() as model:
                scores[f"stage {stage}"] = asdict(evaluator(world, objective).scores(model))
            weights = engine.release_weights()
            if world.is_main:
                released, own = released_parts(engine.module, weights)[""]
                beside = companion_of(engine.module, weights)
                assert own.keys() == released.state_dict().keys() and beside is not None
                assert len(own) + len(beside.weights) == len(weights)
    if world.size == 2:
        engine, objective = build(world, stage=2, accumulation=1, precision="bf16")
        losses["bf16"] = train(engine, objective)
    if world.is_main:
        out.write_text(json.dumps({"losses": losses, "scores": scores}))
    world.barrier()


def main() -> None:
    folder = Path(sys.argv[1])
    for world_size in RUNS:
        out = folder / f"{world_size}.json"
        wait_for(fork_ranks(folder, partial(train_and_score, out=out), world_size=world_size))


if __name__ == "__main__":
    sys.exit(main())
