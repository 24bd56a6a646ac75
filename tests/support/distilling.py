"""A tiny teacher, a tiny student and a batch of random images for both."""

from __future__ import annotations

import timm
import torch
from torch import nn

from data_pipeline.batch import Batch
from finetune.teacher import Teacher

STATS = {"mean": (0.5,), "std": (0.25,)}


def make_student() -> nn.Module:
    """A CNN + SE for four classes, the same weights each time."""
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(
        "nf_seresnet26",
        in_chans=1,
        num_classes=4,
        depths=(1, 1),
        channels=(16, 32),
        stem_type="3x3",
        stem_chs=8,
    )
    return model


def make_teacher(
    layers: tuple[int, ...] = (-1,),
    token_layers: tuple[int, ...] = (),
    *,
    patch_size: int = 4,
    by_head: bool = False,
) -> Teacher:
    """A ViT of two blocks of width 24, the same weights each time."""
    torch.manual_seed(2)
    stats = {"input_size": (1, 28, 28), **STATS}
    args = {"patch_size": patch_size, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, in_chans=1, pretrained_cfg_overlay=stats, **args
    )
    return Teacher(model, attention_layers=layers, token_layers=token_layers, by_head=by_head)


def make_batch(size: int = 8, seed: int = 0) -> Batch:
    """Random images, some of them without label."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (size, 1, 28, 28), dtype=torch.uint8, generator=g),
        targets=torch.randint(-1, 4, (size,), generator=g),
        sample_ids=torch.arange(size),
        epochs=torch.zeros(size, dtype=torch.int64),
        copies=torch.zeros(size, dtype=torch.int64),
        weights=torch.ones(size),
    )
