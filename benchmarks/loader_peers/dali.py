"""NVIDIA DALI's CPU operators: its webdataset reader, fused random-crop decoder, resize and flip, on its threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from benchmarks.loader_peers.task import BATCH, MEAN, RATIO, SCALE, SIZE, STD, shards


def batches(corpus: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    pipeline = _pipeline(
        shards(corpus), form, batch_size=BATCH, num_threads=workers, device_id=None, prefetch_queue_depth=4
    )
    return (outputs[0]["images"] for outputs in DALIGenericIterator(pipeline, ["images"], size=-1))


@pipeline_def
def _pipeline(paths: list[str], form: str) -> Any:
    encoded = fn.readers.webdataset(
        paths=paths, ext=["jpg"], random_shuffle=True, initial_fill=1000, dont_use_mmap=False
    )
    decoded = fn.decoders.image_random_crop(
        encoded, device="cpu", output_type=types.RGB, random_area=list(SCALE), random_aspect_ratio=list(RATIO)
    )
    square = fn.resize(decoded, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=True)
    flipped = fn.random.coin_flip(probability=0.5)
    if form == "uint8":
        return fn.flip(square, horizontal=flipped)
    return fn.crop_mirror_normalize(
        square,
        mirror=flipped,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
    )
