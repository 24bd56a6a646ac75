"""Sharding changes nothing: real ranks in every way to train against a bare loop in one process."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from timm.optim import lamb, lion, muon
from torch import nn
from torch.optim import Optimizer

from engine.world import World
from tests.distributed.exact_program import LEARNING_RATES, MODELS, cases
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import MemoryLoader, Supervised

pytestmark = pytest.mark.slow

TOLERANCE = {"fp16": 2e-4, "bf16": 2e-3}
"""Of a loss within ten steps, relative to float32: a tenth and a half of what the last bit of a 16-bit number is."""


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_way_to_train_gives_the_losses_of_a_plain_loop(world_size: int) -> None:
    said = run_ranks(["tests/distributed/exact_program.py"], world_size=world_size)[0]
    found = json.loads(said.splitlines()[-1])
    assert list(found) == [case.name for case in cases(world_size)]
    errors = {}
    for case in cases(world_size):
        expected = plain_losses(case.model, case.optimizer)[: case.num_steps]
        assert len(found[case.name]) == len(expected)
        error = max(abs(got - loss) / loss for got, loss in zip(found[case.name], expected, strict=True))
        if not error <= TOLERANCE.get(case.train.get("precision", "fp32"), 1e-4):
            errors[case.name] = error
    assert not errors


@cache
def plain_losses(model_name: str, optimizer_name: str) -> list[float]:
    """The whole global batch at once, in float32, by PyTorch and timm alone."""
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    model, loader = MODELS[model_name](), MemoryLoader(alone)
    optimizers = plain_optimizers(model, optimizer_name)
    losses = []
    for step in range(50):
        loss = Supervised()(model, loader.batch(step)).total
        model.zero_grad()
        loss.backward()
        if optimizer_name != "muon":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def plain_optimizers(model: nn.Module, name: str) -> list[Optimizer]:
    """What `name` means by the book; Muon is two: its matrices, and AdamW for all else."""
    lr = LEARNING_RATES[name]
    named = dict(model.named_parameters())
    undecayed = {n for n, p in named.items() if p.ndim < 2 or n in ("pos_embed", "cls_token") or "table" in n}
    matrices = {n for n in named if n.endswith((".qkv.weight", ".proj.weight", "fc1.weight", "fc2.weight"))}
    matrices = {n for n in matrices if named[n].ndim == 2} if name == "muon" else set()
    rest = [
        {"params": [p for n, p in named.items() if n in undecayed], "weight_decay": 0.0},
        {"params": [p for n, p in named.items() if n not in undecayed | matrices], "weight_decay": 0.05},
    ]
    if name == "lion":
        return [lion.Lion(rest, lr=lr, betas=(0.9, 0.999))]
    if name == "lamb":
        return [lamb.Lamb(rest, lr=lr, betas=(0.9, 0.999), max_grad_norm=None)]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.999))
    return [adamw, Float32Muon([named[n] for n in matrices], lr=lr)] if matrices else [adamw]


class Float32Muon(muon.Muon):
    """timm's Muon in float32, as DeepSpeed computes it on a CPU without fp16."""

    def __init__(self, matrices: list[nn.Parameter], *, lr: float) -> None:
        super().__init__(
            matrices, lr=lr, weight_decay=0.05, momentum=0.95, nesterov=True, ns_coefficients="original"
        )

    def step(self, closure: Any = None) -> None:
        orthogonalize: Any = muon.zeropower_via_newtonschulz
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                muon,
                "zeropower_via_newtonschulz",
                lambda *given, **o: orthogonalize(*given, dtype=torch.float32, **o),
            )
            super().step(closure)
