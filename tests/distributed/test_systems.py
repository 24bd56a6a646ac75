"""Every attention system trains at every ZeRO stage: two real ranks against a bare loop in one process."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import nn

from engine.world import World
from tests.distributed.systems_program import (
    LEARNING_RATE,
    NUM_STEPS,
    STAGES,
    follow_of,
    objective_of,
)
from tests.support.run_distributed import run_ranks
from tests.support.systems import SYSTEMS, build_system
from tests.support.tiny_run import MemoryLoader

pytestmark = pytest.mark.slow

WORLD_SIZE = 2
TOLERANCE = 1e-4
"""Of a loss within five steps, relative."""


@cache
def distributed_losses() -> dict[str, list[float]]:
    """All of them from one start: importing DeepSpeed takes longer than training."""
    said = run_ranks(["tests/distributed/systems_program.py"], world_size=WORLD_SIZE)[0]
    found: dict[str, list[float]] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_has_the_losses_of_a_plain_loop_at_every_stage(name: str) -> None:
    expected = plain_losses(name)
    assert len(set(expected)) == NUM_STEPS
    for stage in STAGES:
        found = distributed_losses()[f"{name}, stage {stage}"]
        assert found == pytest.approx(expected, rel=TOLERANCE), f"stage {stage}"


def plain_losses(name: str) -> list[float]:
    """By PyTorch alone; each rank's share on its own, since batch norm looks at a share."""
    model = build_system(name)
    shares = [
        MemoryLoader(World(rank=rank, size=WORLD_SIZE, local_rank=0, device=torch.device("cpu")))
        for rank in range(WORLD_SIZE)
    ]
    objective, follow = objective_of(name, model), follow_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for step in range(NUM_STEPS):
        follow(step)
        for parameter in model.parameters():  # what is off has the gradient zero
            parameter.grad = torch.zeros_like(parameter)
        total = torch.zeros(())
        for share in shares:
            loss = objective(model, share.batch(step)).total / WORLD_SIZE
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total.item())
    return losses
