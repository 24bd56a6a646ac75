"""Shards with real encoded images for tests, written with tarfile alone and indexed by the program."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.index import ShardIndex
from data_pipeline.reindex import index_shards


def encode(image: np.ndarray, suffix: str = "png") -> bytes:
    """uint8 grey or RGB pixels -> bytes of a file."""
    pixels = image if image.ndim == 2 else image[:, :, ::-1]
    done, data = cv2.imencode(f".{suffix}", pixels)
    assert done
    return data.tobytes()


def draw_image(number: int, height: int = 28, width: int = 28, channels: int = 1) -> np.ndarray:
    """A smooth image unlike that of any other number; its first pixels spell the number."""
    rng = np.random.default_rng(number)
    shape = (height, width) if channels == 1 else (height, width, channels)
    image = cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (5, 5), 0)
    image[0, :4] = np.array([number >> shift & 255 for shift in (0, 8, 16, 24)]).reshape(
        4, *[1] * (channels > 1)
    )
    return image


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """An uncompressed tar (or .tar.gz, by its name) with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith(".gz") else "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def make_shards(
    folder: Path,
    lengths: Sequence[int],
    *,
    suffix: str = "png",
    size: tuple[int, int] = (28, 28),
    channels: int = 1,
    num_classes: int | None = 10,
    captions: Callable[[int], str] | None = None,
    bad: dict[int, bytes] | None = None,
    tar_suffix: str = ".tar",
) -> ShardIndex:
    """Shards whose sample i shows draw_image(i) and has label i % num_classes; `bad` replaces the bytes of some."""
    number = 0
    for shard, length in enumerate(lengths):
        members = []
        for _ in range(length):
            image = (bad or {}).get(number) or encode(draw_image(number, *size, channels), suffix)
            members.append((f"{number:06d}.{suffix}", image))
            if num_classes is not None:
                members.append((f"{number:06d}.cls", str(number % num_classes).encode()))
            if captions is not None:
                members.append((f"{number:06d}.txt", captions(number).encode()))
            number += 1
        write_tar(folder / f"test-{shard:06d}{tar_suffix}", members)
    return index_shards(str(folder))
