"""CorpusFacts: what an index and a look at some of its images say; what a choice of network rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.inspection.inspect import spaced
from data_pipeline.inspection.sample_names import SampleNames
from data_pipeline.pixels.decode import DecodeError, decode

_LOOKED_AT = 200
"""Images that are decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFacts:
    """A corpus in numbers."""

    num_images: int
    num_labelled: int
    num_classes: int
    shorter_side: int
    """Median of the images, in pixels."""
    channels: Literal[1, 3]
    """1 where all images that were looked at are grey."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels scaled to 0..1."""


def find_facts(index: ShardIndex) -> CorpusFacts:
    """Counts of the index, and sizes and colours of evenly spaced images; DataError where none can be read."""
    names = SampleNames(index)
    sides: list[int] = []
    moments: list[NDArray[np.float64]] = []
    is_grey = True
    for encoded in names.images(spaced(np.arange(index.num_samples), _LOOKED_AT)):
        try:
            pixels = decode(encoded, channels=3)
        except DecodeError:
            continue
        sides.append(min(pixels.shape[:2]))
        is_grey = is_grey and bool((pixels == pixels[:, :, :1]).all())
        scaled = pixels.reshape(-1, 3) / 255.0
        moments.append(np.stack([scaled.mean(axis=0), np.square(scaled).mean(axis=0)]))
    names.close()
    if not sides:
        raise DataError(
            f"none of the images of {index.name!r} that were looked at can be decoded: mirada data verify"
        )
    mean, square = np.mean(moments, axis=0)
    channels: Literal[1, 3] = 1 if is_grey else 3
    return CorpusFacts(
        num_images=index.num_samples,
        num_labelled=int((index.labels() >= 0).sum()),
        num_classes=len(index.classes),
        shorter_side=int(np.median(sides)),
        channels=channels,
        mean=tuple(mean[:channels].tolist()),
        std=tuple(np.sqrt(square - mean**2)[:channels].tolist()),
    )
