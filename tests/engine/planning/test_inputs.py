"""What a plan is made from: corpora that are there or assumed, and the numbers of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import engine.session
from configs.data import DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, TrainConfig
from data_pipeline.errors import DataError
from engine.command import Command
from engine.planning.inputs import measure_corpus, measure_workload, open_or_assume_index
from engine.planning.workload import Request, changed
from engine.session import Session
from engine.world import World
from models.build import build_model
from models.complexity import count_flops, count_parameters, train_flops_per_image


def config(**sections: dict[str, Any]) -> RunConfig:
    whole = RunConfig(
        data=DataConfig(train="mirada://sample/train", image_size=32),
        model=ModelConfig(name="any"),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig.model_validate({"duration": "1 epochs", "global_batch": 64}),
    )
    return changed(whole, **sections)


def tiny_model(**changes: Any) -> nn.Module:
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, **changes}
    described = ModelConfig(name="vit_tiny_patch16_224", args=args)
    return build_model(described, num_classes=5, in_chans=3, image_size=32)


def test_an_index_that_is_missing_is_refused_with_the_way_to_plan_without(tmp_path: Path) -> None:
    data = DataConfig(train=str(tmp_path))
    with pytest.raises(DataError, match=r"no index in .*--samples M"):
        open_or_assume_index(data, samples=None, shards=None, classes=10)


def test_an_assumed_corpus_is_read_as_a_real_one_of_that_size_would_be() -> None:
    run = config(train={"global_batch": 256})
    index = open_or_assume_index(run.data, samples=100_000, shards=64, classes=10)
    request = Request(nodes=4, gpus_per_node=8)
    corpus = measure_corpus(index, run, request, is_assumed=True)
    assert (corpus.num_samples, corpus.num_shards, corpus.batches_per_epoch) == (100_000, 64, 390)
    assert corpus.num_streams == 8
    assert 1.0 <= corpus.amplification < 1.2
    assert 16 <= corpus.most_shards_per_node <= 18


def test_a_corpus_smaller_than_a_batch_is_refused() -> None:
    run = config(train={"global_batch": 8000})
    index = open_or_assume_index(run.data, samples=None, shards=None, classes=10)
    with pytest.raises(DataError, match="a global batch of 8000 images needs at least as many samples"):
        measure_corpus(index, run, Request(nodes=1, gpus_per_node=1), is_assumed=False)


def test_a_frozen_network_adds_its_weights_and_its_forward() -> None:
    model, teacher = tiny_model(), tiny_model(depth=3).requires_grad_(False)
    alone = measure_workload(model, config(), micro_batch=8)
    taught = measure_workload(model, config(), micro_batch=8, frozen=[teacher])
    assert alone.forward_flops == count_flops(model, (3, 32, 32))
    assert taught.train_flops - alone.train_flops == count_flops(teacher, (3, 32, 32))
    assert taught.frozen_bytes == 4 * count_parameters(teacher)
    assert alone.checkpointed is not None
    assert alone.checkpointed.bytes(64) < alone.activations.bytes(64)


@pytest.mark.parametrize("peak", [None, 1e12])
def test_the_meter_is_told_of_flops_where_the_devices_peak_is_known(
    peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.session, "peak_flops", lambda device, precision: peak)
    session, model = Session.__new__(Session), tiny_model()
    session.config, session._flops_per_image = config(), None
    session.world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    session._command = Command(
        program="pretrain", recipe="any", overrides=(), out=Path("nowhere"), fresh=False
    )
    session.examine(model)
    expected = None if peak is None else train_flops_per_image(model, (3, 32, 32))
    assert (session._peak_flops, session._flops_per_image) == (peak, expected)
