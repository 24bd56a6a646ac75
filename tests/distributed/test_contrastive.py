"""The sigmoid loss on 1, 2 and 4 real ranks at every ZeRO stage against a bare loop over whole batches."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from data_pipeline.batch import normalize
from engine.sharding.optim import parameter_groups
from engine.world import ALONE
from tests.distributed.contrastive_program import NUM_STEPS, NUM_VAL, RUNS, evaluator
from tests.support.captioned import captioned_batch, tiny_pairing
from tests.support.masked import MEAN, STD
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import GLOBAL_BATCH, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses and scores by number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(["tests/distributed/contrastive_program.py", str(folder)], world_size=1)
    return {world_size: json.loads((folder / f"{world_size}.json").read_text()) for world_size in RUNS}


@cache
def plain() -> tuple[list[float], nn.Module]:
    """By PyTorch and open_clip's loss alone."""
    model, objective = tiny_pairing(pool="attention", pool_heads=2)
    optimizer = torch.optim.AdamW(parameter_groups(model, tiny_config().optim), lr=1e-2)
    loss_of, losses = open_clip.loss.SigLipLoss(), []
    for step in range(NUM_STEPS):
        batch = captioned_batch(GLOBAL_BATCH, first=GLOBAL_BATCH * (step % 2))
        loss = loss_of(*model(normalize(batch.images, MEAN, STD), objective.tokenizer(batch.captions or ())))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("world_size", RUNS)
def test_every_stage_gives_the_losses_of_a_plain_loop_with_and_without_accumulation(
    found: dict[int, dict[str, Any]], world_size: int
) -> None:
    expected, _ = plain()
    assert expected[-1] < 0.8 * expected[0]
    losses = found[world_size]["losses"]
    assert len(losses) == len(RUNS[world_size]) + (world_size == 2)
    for name, values in losses.items():
        assert values == pytest.approx(expected, rel=3e-2 if name == "bf16" else 1e-4), name


@pytest.mark.parametrize("world_size", RUNS)
def test_ranks_score_by_class_names_as_one_process_does(
    found: dict[int, dict[str, Any]], world_size: int
) -> None:
    _, model = plain()
    alone = evaluator(ALONE, tiny_pairing()[1]).scores(model.eval())
    one_image = 100.0 / NUM_VAL
    for scores in found[world_size]["scores"].values():
        assert scores["num_images"] == alone.num_images == NUM_VAL
        assert scores["loss"] == pytest.approx(alone.loss, rel=1e-3)
        for name in ("top1", "top5"):
            assert scores[name] == pytest.approx(getattr(alone, name), abs=1.01 * one_image), name
