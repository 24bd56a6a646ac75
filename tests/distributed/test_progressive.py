"""Attention that is switched on during a run: real ranks at every ZeRO stage against a bare loop in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.timetable import Timetable
from engine.world import World
from models.progressive import switched_layers
from tests.distributed.progressive_program import SHARES, STEPS, progressive_config, progressive_model
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import MemoryLoader, Supervised

pytestmark = pytest.mark.slow


def test_layers_come_in_at_every_zero_stage_as_in_a_plain_loop_and_a_resumed_run_does_not_differ(
    tmp_path: Path,
) -> None:
    said = run_ranks(["tests/distributed/progressive_program.py", str(tmp_path)])[0]
    found = json.loads(said.splitlines()[-1])
    assert list(found) == ["0", "1", "2", "3"]
    expected = plain_losses()
    for stage, losses in found.items():
        assert losses == pytest.approx(expected, rel=1e-4), stage


def plain_losses() -> list[float]:
    """The whole global batch at once by PyTorch alone; what is off has the gradient zero, and decays."""
    config = progressive_config(0, 1)
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    model, loader = progressive_model(config), MemoryLoader(alone)
    table = Timetable.of(config, steps_per_epoch=loader.batches_per_epoch)
    named = dict(model.named_parameters())
    undecayed = {n for n, p in named.items() if p.ndim < 2 or n in ("pos_embed", "cls_token")}
    groups = [
        {"params": [p for n, p in named.items() if n in undecayed], "weight_decay": 0.0},
        {"params": [p for n, p in named.items() if n not in undecayed], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999))
    losses = []
    for step in range(STEPS):
        for layer, share in zip(switched_layers(model), SHARES[step], strict=True):
            layer.set_share(share)
        loss = Supervised()(model, loader.batch(step)).total
        optimizer.zero_grad()
        loss.backward()
        off = [name for name, parameter in named.items() if parameter.grad is None]
        assert {name.split(".")[1] for name in off} == {str(i) for i, s in enumerate(SHARES[step]) if not s}
        assert all(name.split(".")[2] in ("attn", "norm1") for name in off)
        for name in off:
            named[name].grad = torch.zeros_like(named[name])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = table.learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses
