"""Sharding changes nothing: two real ranks at every ZeRO stage against a bare loop in one process."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from engine.world import World
from tests.distributed.exact_program import NUM_STEPS
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config, tiny_model

pytestmark = pytest.mark.slow


def plain_losses() -> list[float]:
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    model, loader, optim = tiny_model(drop_path=0.0), MemoryLoader(alone), tiny_config().optim
    free = {n for n, p in model.named_parameters() if p.ndim < 2 or n in ("pos_embed", "cls_token")}
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in free) == is_free], "weight_decay": decay}
        for is_free, decay in ((True, 0.0), (False, optim.weight_decay))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=optim.betas)
    losses = []
    for step in range(NUM_STEPS):
        loss = Supervised()(model, loader.batch(step)).total
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_stage_and_accumulation_gives_the_losses_of_a_plain_loop() -> None:
    expected = plain_losses()
    said = run_ranks(["tests/distributed/exact_program.py"], timeout_s=240)[0]
    found = json.loads(said.splitlines()[-1])
    assert len(found) == 8
    for name, losses in found.items():
        assert losses == pytest.approx(expected, rel=1e-4), name
