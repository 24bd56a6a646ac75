"""Ranks of test_progressive: at each ZeRO stage, layers that come in during a run that is stopped in between.

Rank 0 prints the losses of each stage as one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.training import RunConfig
from engine.events import read_events
from engine.sharding.zero import build_engine
from engine.survival.lifeline import Lifeline
from engine.survival.preempt import StopSignal
from engine.trainer import Outcome
from engine.world import World, close_world, init_world
from models.progressive import switched_layers
from models.systems import apply_attention
from tests.support.tiny_run import Supervised, history, tiny_config, tiny_model, tiny_trainer

STEPS = 12
PROGRESSIVE = {"over": "8 steps", "fade": "2 steps", "start": 1}
# Of three layers the second begins at step 3 and the third at step 6; each takes two steps.
SHARES = [(1, 0, 0)] * 4 + [(1, 0.5, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0.5)] + [(1, 1, 1)] * 4


def progressive_config(stage: int, world_size: int) -> RunConfig:
    config = tiny_config(stage=stage, steps=STEPS, world_size=world_size, accumulation=2, ema=None)
    sections = config.model_dump()
    sections["model"]["attention"]["progressive"] = PROGRESSIVE
    if stage == 3:  # else DeepSpeed keeps all that is so small whole
        sections["zero"]["extra"] = {"zero_optimization": {"stage3_param_persistence_threshold": 500}}
    return RunConfig.model_validate(sections)


def progressive_model(config: RunConfig) -> nn.Module:
    return apply_attention(tiny_model(drop_path=0.0, depth=3), config.model.attention)


def train(
    out: Path, config: RunConfig, world: World, *, stop_at: int | None = None
) -> tuple[Outcome, dict[str, Tensor]]:
    engine = build_engine(progressive_model(config), config, world)
    layers = switched_layers(engine.module)
    seen = []

    def note_shares(call: int) -> float:
        seen.append(tuple(float(layer.share) for layer in layers))
        if stop_at is not None and call == 2 * stop_at and world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return 1.0

    with StopSignal() as stop, Lifeline(world) as lifeline:
        objective = Supervised(note_shares)
        outcome = tiny_trainer(out, config, world, engine, objective, stop=stop, lifeline=lifeline).fit(stop)
    first = outcome.step - len(seen) // 2
    assert seen == [shares for shares in SHARES[first : outcome.step] for _ in range(2)], seen
    return outcome, engine.release_weights()


def main(folder: Path) -> None:
    world = init_world()
    losses: dict[int, Any] = {}
    for stage in (0, 1, 2, 3):
        config = progressive_config(stage, world.size)
        whole, cut = folder / f"whole{stage}", folder / f"cut{stage}"
        finished, expected = train(whole, config, world)
        assert finished.step == STEPS
        stopped, _ = train(cut, config, world, stop_at=6)  # while the third layer comes in
        assert (stopped.step, stopped.exit_code) == (7, 75), stopped
        resumed, weights = train(cut, config, world)
        assert resumed.step == STEPS
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        if world.is_main:
            assert history(whole) == history(cut)
            events = [event for event in read_events(whole / "events.jsonl") if event["kind"] == "metrics"]
            losses[stage] = [event["values"]["train/loss"] for event in events]
    if world.is_main:
        print(json.dumps(losses))
    close_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
