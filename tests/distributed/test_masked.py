"""Masked objectives on two real ranks at every ZeRO stage against a bare loop; features scored once each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from engine.world import World
from models.pretext import Pretext
from tests.distributed.masked_program import NUM_STEPS, NUM_VAL, evaluator
from tests.support.masked import tiny_batch, tiny_task
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import GLOBAL_BATCH, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    said = run_ranks(["tests/distributed/masked_program.py"])[0]
    yield json.loads(said.splitlines()[-1])


def plain_losses(task: str) -> list[float]:
    model, objective = tiny_task(task)
    assert isinstance(model, Pretext)
    optim, free = tiny_config().optim, model.no_weight_decay()
    groups = [
        {"params": [p], "weight_decay": 0.0 if p.ndim < 2 or n in free else optim.weight_decay}
        for n, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=optim.betas)
    losses = []
    for step in range(NUM_STEPS):
        batch = tiny_batch(GLOBAL_BATCH, epoch=step, first=GLOBAL_BATCH * (step % 2))
        loss = objective(model, batch).total
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("task", ["mae", "simmim_swin"])
def test_every_stage_gives_the_losses_of_a_plain_loop_with_and_without_accumulation(
    found: dict[str, Any], task: str
) -> None:
    expected = plain_losses(task)
    assert expected[-1] < 0.95 * expected[0]
    series = {name: losses for name, losses in found["losses"].items() if name.startswith(f"{task}, stage")}
    assert len(series) == 4
    for name, losses in series.items():
        assert losses == pytest.approx(expected, rel=1e-4), name
    assert found["losses"][f"{task}, bf16"] == pytest.approx(expected, rel=3e-2)


@pytest.mark.parametrize("task", ["mae", "simmim_swin"])
def test_two_ranks_score_features_as_one_process_does(found: dict[str, Any], task: str) -> None:
    model, _ = tiny_task(task)
    alone = evaluator(World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))).scores(model.eval())
    one_image = 100.0 / NUM_VAL
    for stage in (0, 3):
        scores = found["scores"][f"{task}, stage {stage}"]
        assert scores["num_images"] == alone.num_images == NUM_VAL
        assert scores["loss"] == pytest.approx(alone.loss, rel=1e-3)
        for name in ("top1", "top5", "knn_top1"):
            assert scores[name] == pytest.approx(getattr(alone, name), abs=1.01 * one_image), name
