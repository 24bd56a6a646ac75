"""Tiny models and batches for the tests of masked image modelling."""

from __future__ import annotations

import torch
from torch import nn

from configs.training import ModelConfig
from data_pipeline.batch import Batch
from engine.objective import Objective
from models.build import build_model
from pretrain.config import MaeConfig, SimMimConfig
from pretrain.masked import build_mae, build_simmim

SIZE, CHANNELS = 16, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
VIT = ModelConfig(
    name="vit_tiny_patch16_224",
    args={
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "global_pool": "avg",
        "fc_norm": False,
    },
)
SWIN = ModelConfig(
    name="swin_tiny_patch4_window7_224",
    args={
        "patch_size": 2,
        "embed_dim": 12,
        "depths": (2, 2),
        "num_heads": (2, 2),
        "window_size": 4,
        "drop_path_rate": 0.0,
    },
)
MAE = MaeConfig(name="mae", decoder_width=16, decoder_depth=1, decoder_heads=2)
SIMMIM = SimMimConfig(name="simmim", mask_patch=4)
TASKS = {"mae": (VIT, MAE), "simmim_vit": (VIT, SIMMIM), "simmim_swin": (SWIN, SIMMIM)}


def tiny_encoder(config: ModelConfig = VIT, *, size: int = SIZE) -> nn.Module:
    """A timm network of few weights."""
    return build_model(config, num_classes=10, in_chans=CHANNELS, image_size=size)


def tiny_task(name: str, *, seed: int = 3) -> tuple[nn.Module, Objective]:
    """A network around an encoder and its objective, the same weights each time."""
    torch.manual_seed(0)
    model, task = TASKS[name]
    if isinstance(task, MaeConfig):
        return build_mae(tiny_encoder(model), task, mean=MEAN, std=STD, seed=seed)
    return build_simmim(tiny_encoder(model), task, mean=MEAN, std=STD, seed=seed)


def tiny_batch(count: int = 6, *, epoch: int = 0, first: int = 0) -> Batch:
    """Random images, of which each is the same in every batch it is in."""
    ids = torch.arange(first, first + count)
    images = [
        torch.randint(0, 256, (CHANNELS, SIZE, SIZE), generator=torch.Generator().manual_seed(int(i)))
        for i in ids
    ]
    return Batch(
        images=torch.stack(images).to(torch.uint8),
        targets=ids % 10,
        sample_ids=ids,
        epochs=torch.full_like(ids, epoch),
        copies=torch.zeros_like(ids),
        weights=torch.ones(count),
    )
