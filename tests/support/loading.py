"""Loaders of small data: their config, batches taken from them, and what makes two loaders equal."""

from __future__ import annotations

import itertools

import torch

from configs.data import AugmentConfig, DataConfig
from data_pipeline.batch import Batch
from data_pipeline.loader import ShardLoader

LENGTHS = [30, 17, 41, 25]
"""Samples of the shards that most tests of loaders read."""


def configure(**changes: object) -> DataConfig:
    augment = AugmentConfig(crop="pad", pad=2, erase=0.3)
    fields: dict[str, object] = {
        "train": "unused",
        "image_size": 28,
        "channels": 1,
        "mean": (0.5,),
        "std": (0.5,),
    }
    fields |= {"workers": 0, "augment": augment}
    return DataConfig(**(fields | changes))  # type: ignore[arg-type]


def take(loader: ShardLoader, count: int) -> list[Batch]:
    batches = []
    for batch in itertools.islice(loader, count):
        batches.append(batch)
        loader.advance()
    return batches


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.sample_ids.tolist() == other.sample_ids.tolist()
        assert batch.targets.tolist() == other.targets.tolist()
        assert torch.equal(batch.images, other.images)
