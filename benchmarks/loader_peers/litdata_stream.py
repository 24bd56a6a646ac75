"""LitData: its optimized chunks holding the original JPEG bytes, its dataset and loader, torchvision's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata
from PIL import Image

from benchmarks.loader_peers.task import BATCH, endlessly
from benchmarks.loader_peers.transforms import tensor_transform


def convert(pictures: Path, folder: Path) -> None:
    """Writes LitData's chunks from a folder of pictures."""
    paths = sorted(map(str, pictures.glob("*.jpg")))
    litdata.optimize(_open, paths, output_dir=str(folder), chunk_bytes="64MB", num_workers=2)


class _Pictures(litdata.StreamingDataset):
    def __init__(self, folder: Path, form: str) -> None:
        super().__init__(str(folder), shuffle=True, drop_last=True)
        self._transform_picture = tensor_transform(form)

    def __getitem__(self, index: Any) -> Any:
        return self._transform_picture(super().__getitem__(index))


def batches(folder: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    dataset = _Pictures(folder, form)
    return endlessly(
        litdata.StreamingDataLoader(
            dataset,
            batch_size=BATCH,
            num_workers=workers,
            drop_last=True,
            prefetch_factor=4,
            persistent_workers=True,
        )
    )


def _open(path: str) -> Any:
    return Image.open(path)  # an opened JPEG file is stored as it is and read with torchvision's decoder
