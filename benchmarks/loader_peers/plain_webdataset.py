"""Plain webdataset: PIL and torchvision's transforms in the worker processes of its WebLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import webdataset as wds
from torchvision.transforms import v2

from benchmarks.loader_peers.task import BATCH, SUFFIXES, shards
from benchmarks.loader_peers.transforms import pil_transform

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "randaugment": {"photometric": (v2.RandAugment(2, 9, fill=[124, 116, 104]),)},
    "colour_jitter": {"photometric": (v2.ColorJitter(0.4, 0.4, 0.4),)},
    "erase": {"after": (v2.RandomErasing(0.25),)},
}


def batches(corpus: Path, *, form: str, workers: int, augmentation: str = "") -> Iterator[Any]:
    """Batches without end."""
    dataset = wds.WebDataset(shards(corpus), resampled=True).shuffle(1000).decode("pil")
    return loaded(dataset, pil_transform(form, **AUGMENTATIONS[augmentation]), workers)


def loaded(dataset: Any, transform: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    """Batches of a dataset's pictures, transformed in worker processes."""
    samples = dataset.to_tuple(SUFFIXES, "cls").map_tuple(transform, _unchanged).batched(BATCH, partial=False)
    loader = wds.WebLoader(samples, batch_size=None, num_workers=workers, prefetch_factor=4)
    return (images for images, _labels in loader)


def _unchanged(label: Any) -> Any:
    return label
