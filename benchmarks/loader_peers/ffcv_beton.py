"""FFCV: its one-file format holding the original JPEG bytes, its compiled decoder, crop, flip and normalization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.loader_peers.task import BATCH, MEAN, RATIO, SCALE, SIZE, STD, endlessly

_NAME = "pictures.beton"


class _Paths:
    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self._paths[index], 0


def convert(pictures: Path, folder: Path) -> None:
    """Writes FFCV's file from a folder of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    image = RGBImageField(write_mode="jpg")
    image.encode = _keep_jpeg  # a field class of its own would have to be named again by every reader
    writer = DatasetWriter(str(folder / _NAME), {"image": image, "label": IntField()}, num_workers=2)
    writer.from_indexed_dataset(_Paths(sorted(map(str, pictures.glob("*.jpg")))))


def batches(folder: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    crop: list[Any] = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), SCALE, RATIO), RandomHorizontalFlip()]
    if form == "uint8":
        steps = [*crop, ToTensor()]
    else:
        mean, std = (np.array(values) * 255 for values in (MEAN, STD))
        steps = [*crop, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    loader = Loader(
        str(folder / _NAME),
        batch_size=BATCH,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        batches_ahead=4,
        pipelines={"image": steps, "label": None},
    )
    return (images for (images,) in endlessly(loader))


def _keep_jpeg(destination: Any, path: str, malloc: Any) -> None:
    # What RGBImageField.encode does with pixels, which it would compress again.
    with Image.open(path) as opened:
        width, height = opened.size
    data = np.fromfile(path, np.uint8)
    destination["mode"], destination["width"], destination["height"] = IMAGE_MODES["jpg"], width, height
    destination["data_ptr"], storage = malloc(data.nbytes)
    storage[:] = data
