"""Paths of a supernet are compared on images of one size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.load import load_config
from pretrain import path_scores
from pretrain.config import PretrainConfig
from pretrain.run import build_task


def test_batch_norm_gets_its_statistics_at_the_size_that_is_scored_though_training_began_with_a_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = (
        "data.progressive=[{until: 50 %, image_size: 16}]",
        "train.global_batch=8",
        "data.held_out=0.01",
    )
    loaded = load_config(PretrainConfig, "configs/smoke/search.yaml", growing)
    (tmp_path / "config.yaml").write_text(loaded.yaml())
    model, _ = build_task(loaded.config, num_classes=10)
    sides: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    monkeypatch.setattr(path_scores, "load_release", lambda reference: model)
    path_scores.PathScorer(tmp_path, device=torch.device("cpu")).score((0, 0))
    assert len(sides) > path_scores.NUM_CALIBRATION and set(sides) == {loaded.config.data.image_size}
