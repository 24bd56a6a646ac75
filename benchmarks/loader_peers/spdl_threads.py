"""SPDL: its tar reader and a thread pool over its FFmpeg decoder and filters (crop, scale, flip)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torchvision.transforms import RandomResizedCrop

from benchmarks.loader_peers.task import BATCH, RATIO, SCALE, SIZE, shards
from benchmarks.loader_peers.transforms import normalize


def batches(corpus: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    pipeline = (
        PipelineBuilder()
        .add_source(_pictures(corpus))
        .pipe(_decode, concurrency=workers)
        .aggregate(BATCH)
        .pipe(_collate_normalized if form == "float32" else _collate)
        .add_sink(4)
        .build(num_threads=workers)
    )
    pipeline.start()
    return iter(pipeline)


def _pictures(corpus: Path) -> Iterator[bytes]:
    paths, pool = shards(corpus), []
    while True:
        random.shuffle(paths)
        for path in paths:
            with open(path, "rb") as shard:
                for name, content in spdl.io.iter_tarfile(shard):
                    if name.endswith(".cls"):
                        continue
                    pool.append(bytes(content))
                    if len(pool) > 1000 or (len(pool) > 100 and random.random() < 0.5):
                        place = random.randrange(len(pool))
                        pool[place], pool[-1] = pool[-1], pool[place]
                        yield pool.pop()


def _decode(data: bytes) -> Any:
    packets = spdl.io.demux_image(data)
    picture = torch.empty((1, packets.height, packets.width), device="meta")
    top, left, height, width = RandomResizedCrop.get_params(picture, list(SCALE), list(RATIO))
    flip = "hflip," if random.random() < 0.5 else ""
    steps = (
        f"crop={width}:{height}:{left}:{top},scale={SIZE}:{SIZE}:flags=bilinear,{flip}format=pix_fmts=rgb24"
    )
    return spdl.io.decode_packets(packets, filter_desc=steps)


def _collate(frames: list[Any]) -> torch.Tensor:
    return spdl.io.to_torch(spdl.io.convert_frames(frames))


def _collate_normalized(frames: list[Any]) -> torch.Tensor:
    return normalize(_collate(frames).permute(0, 3, 1, 2))
