"""timm's reader of webdataset shards and timm's transforms, in PyTorch's DataLoader as timm builds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.data import create_dataset, create_transform
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader

from benchmarks.loader_peers.task import BATCH, MEAN, RATIO, SCALE, SIZE, STD, endlessly


def batches(corpus: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    dataset = create_dataset("wds/", root=str(corpus), split="train", is_training=True, batch_size=BATCH)
    dataset.transform = create_transform(
        SIZE,
        is_training=True,
        use_prefetcher=form == "uint8",  # timm's prefetcher takes uint8 and normalizes on the GPU
        scale=SCALE,
        ratio=RATIO,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
    )
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=4,
        collate_fn=fast_collate if form == "uint8" else None,
    )
    return (images for images, _labels in endlessly(loader))
