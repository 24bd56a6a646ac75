"""engine.kept_tokens: what a network with dynamic attention keeps, beside a loss and beside scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from configs.attention import DynamicConfig
from data_pipeline.batch import Batch
from engine.kept_tokens import KeptTokens, TokenLog
from engine.objective import Loss
from engine.results.evaluate import Evaluator
from engine.world import World
from models.dynamic import dynamic_blocks, use_dynamic
from tests.support.tiny_run import MEAN, STD, MemoryLoader, Supervised, tiny_model

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def network() -> nn.Module:
    return use_dynamic(tiny_model(drop_path=0.0), DynamicConfig(threshold=0.9))


def plain(model: nn.Module, batch: Batch) -> Loss:
    return Loss(total=Supervised()(model, batch).total)


def in_parts(model: nn.Module, batch: Batch) -> Loss:
    total = Supervised()(model, batch).total
    return Loss(total=total, parts={"logits": total})


def counts_of(model: nn.Module) -> torch.Tensor:
    return torch.tensor([block.counts for block in dynamic_blocks(model)]).double()


def test_the_mean_over_blocks_and_images_is_a_part_of_the_loss() -> None:
    model, batch = network(), MemoryLoader(ALONE).batch(0)
    loss = TokenLog(plain, model)(model, batch)
    assert loss.total is loss.parts["task"] and loss.total.requires_grad
    assert float(loss.parts["tokens"]) == pytest.approx(float(counts_of(model).mean()))
    assert 1 < counts_of(model).mean() < 16
    assert list(TokenLog(in_parts, model)(model, batch).parts) == ["logits", "tokens"]


def test_an_evaluation_tells_those_of_the_images_that_count() -> None:
    model, batch = network().eval(), MemoryLoader(ALONE).batch(0)
    weights = torch.tensor([1.0] * 10 + [0.0] * 6)
    batches = [batch, replace(MemoryLoader(ALONE).batch(1), weights=weights)]
    beside = KeptTokens(model, ALONE)
    evaluator = Evaluator(batches=batches, mean=MEAN, std=STD, world=ALONE, beside=beside)
    found = evaluator.scores(model)
    kept = []
    for one, num_counted in zip(batches, (16, 10), strict=True):
        Evaluator(batches=[one], mean=MEAN, std=STD, world=ALONE).scores(model)
        kept.append(counts_of(model)[:, :num_counted])
    expected = torch.cat(kept, dim=1)
    assert expected.shape[1] == found.num_images == 26
    assert found.more["tokens"] == pytest.approx(float(expected.mean()))
    assert found.more["tokens_last"] == pytest.approx(float(expected[-1].mean()))
    assert evaluator.scores(model).more == found.more, "begins anew"
