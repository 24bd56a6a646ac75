"""Tiny towers and captioned batches for the tests of learning from captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from configs.text import TextConfig
from configs.training import ModelConfig
from data_pipeline.batch import Batch
from engine.world import ALONE, World
from models.image_text import ImageText
from pretrain.config import SiglipConfig
from pretrain.contrastive import Contrastive, build_siglip
from tests.support.masked import MEAN, STD, VIT, tiny_batch, tiny_encoder

TEXT = TextConfig(width=8, layers=1, heads=2, context_length=8)
SIGLIP = SiglipConfig(name="siglip", embed_dim=12, text=TEXT)
WORDS = ("red", "green", "blue", "old", "new", "tall", "small", "round")


def tiny_pairing(
    model: ModelConfig = VIT, *, world: World = ALONE, seed: int = 0, **changes: Any
) -> tuple[ImageText, Contrastive]:
    """Two towers and their objective, the same weights each time."""
    torch.manual_seed(seed)
    config = SIGLIP.model_copy(update=changes)
    return build_siglip(tiny_encoder(model), config, mean=MEAN, std=STD, world=world)


def captioned_batch(count: int = 6, *, epoch: int = 0, first: int = 0) -> Batch:
    """Random images, each with words of its own."""
    batch = tiny_batch(count, epoch=epoch, first=first)
    return replace(batch, captions=tuple(caption_of(i) for i in batch.sample_ids.tolist()))


def caption_of(number: int) -> str:
    """Two words, others for each number below 64."""
    return f"a {WORDS[number % 8]} {WORDS[number // 8 % 8]} thing"
