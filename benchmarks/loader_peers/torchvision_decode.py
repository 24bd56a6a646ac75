"""webdataset with torchvision's own JPEG decoder and its transforms on tensors, the fastest plain PyTorch way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

from benchmarks.loader_peers.plain_webdataset import loaded
from benchmarks.loader_peers.task import shards
from benchmarks.loader_peers.transforms import decode_with_torchvision, tensor_transform


def batches(corpus: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    dataset = wds.WebDataset(shards(corpus), resampled=True).shuffle(1000)
    transform = tensor_transform(form)
    return loaded(dataset, lambda data: transform(decode_with_torchvision(data)), workers)
