"""Every way to fine-tune trains at every ZeRO stage: two real ranks against a bare loop in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.modes import Mode
from engine.world import World
from tests.distributed.modes_program import LEARNING_RATE, MODES, NUM_STEPS, STAGES, build
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config

pytestmark = pytest.mark.slow


def test_each_mode_has_the_losses_of_a_plain_loop_resumes_and_releases_plain_weights(tmp_path: Path) -> None:
    said = run_ranks(["tests/distributed/modes_program.py", str(tmp_path)])[0]
    found = json.loads(said.splitlines()[-1])
    for mode in MODES:
        expected = plain_losses(mode)
        assert len(set(expected)) == NUM_STEPS
        for stage in STAGES[mode.name]:
            assert found[f"{mode.name}, stage {stage}"] == pytest.approx(expected, rel=1e-4), (mode, stage)


def plain_losses(mode: Mode) -> list[float]:
    """The whole global batch at once, by PyTorch alone."""
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    model, loader = build(mode), MemoryLoader(alone)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = tiny_config().optim.weight_decay
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    losses = []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = Supervised()(model, loader.batch(step)).total
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
