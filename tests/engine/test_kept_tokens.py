"""engine.kept_tokens: what a network with dynamic attention keeps, beside a loss and beside scores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from configs.attention import AttentionConfig, DynamicConfig
from configs.data import DataConfig
from configs.training import ProbeConfig
from data_pipeline.batch import Batch
from data_pipeline.index import open_index
from engine.kept_tokens import KeptTokens, TokenLog
from engine.objective import Loss, look_ahead
from engine.results.evaluate import Evaluator
from engine.results.evaluation import Evaluation
from engine.survival.preempt import StopSignal
from engine.world import World
from models.dynamic import dynamic_blocks, use_dynamic
from models.zero_shot import class_tokens
from tests.support.captioned import captioned_batch, tiny_pairing
from tests.support.curious import Curious
from tests.support.masked import VIT
from tests.support.tiny_run import MEAN, STD, MemoryLoader, Supervised, tiny_config, tiny_model

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


def test_the_objective_within_is_shown_what_will_come() -> None:
    model, batch, curious = network(), MemoryLoader(ALONE).batch(0), Curious(plain)
    look_ahead(TokenLog(curious, model), model, batch.split(8))
    assert curious.shown == [8, 8]
    look_ahead(TokenLog(plain, model), model, batch.split(8))  # which wants to see nothing


def test_the_loss_of_captions_in_micro_batches_is_that_of_the_whole_batch() -> None:
    merged = VIT.model_copy(update={"attention": AttentionConfig(dynamic=DynamicConfig(threshold=0.9))})
    model, objective = tiny_pairing(merged)
    batch, log = captioned_batch(8), TokenLog(objective, model.image)
    whole = log(model, batch).total.item()
    parts = batch.split(2)
    look_ahead(log, model, parts)
    assert sum(log(model, part).total.item() for part in parts) / 4 == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("kind", ["logits", "features", "names"])
def test_tokens_are_told_however_a_network_is_evaluated(kind: str) -> None:
    torch.manual_seed(0)
    data = DataConfig(train="mirada://sample/train", image_size=16, workers=0)
    config = tiny_config(world_size=1).model_copy(update={"data": data})
    evaluation = Evaluation(open_index("mirada://sample/test"), config, world=ALONE, stop=StopSignal())
    towers, objective = tiny_pairing(VIT)
    use_dynamic(towers.image, DynamicConfig(threshold=0.9))
    found = evaluation.of(
        towers.image,
        open_index("mirada://sample/train"),
        probe=ProbeConfig(max_images=100) if kind == "features" else None,
        beside=None,
        name_classes=partial(class_tokens, prompts=["a {}"], tokenizer=objective.tokenizer)
        if kind == "names"
        else None,
    ).scores((towers if kind == "names" else towers.image).eval())
    assert found.num_images == 1000
    assert set(found.more) == {"tokens", "tokens_last"} and 1 < found.more["tokens_last"] < 17
