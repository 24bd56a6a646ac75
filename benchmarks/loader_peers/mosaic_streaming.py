"""MosaicML Streaming: MDS shards holding the original JPEG bytes, decoded by PIL, torchvision's transforms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from benchmarks.loader_peers.task import BATCH, endlessly
from benchmarks.loader_peers.transforms import pil_transform


def convert(pictures: Path, folder: Path) -> None:
    """Writes MDS shards from a folder of pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    with MDSWriter(out=str(folder), columns={"image": "jpeg"}) as writer:
        for path in sorted(pictures.glob("*.jpg")):
            writer.write({"image": Image.open(path)})


class _Pictures(StreamingDataset):
    def __init__(self, folder: Path, form: str) -> None:
        super().__init__(local=str(folder), shuffle=True, batch_size=BATCH)
        self._transform_picture = pil_transform(form)

    def __getitem__(self, index: Any) -> Any:
        return self._transform_picture(super().__getitem__(index)["image"])


def batches(folder: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    clean_stale_shared_memory()  # a run before was ended by a signal
    loader = DataLoader(
        _Pictures(folder, form),
        batch_size=BATCH,
        num_workers=workers,
        drop_last=True,
        prefetch_factor=4,
        persistent_workers=True,
    )
    return endlessly(loader)
