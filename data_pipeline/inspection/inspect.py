"""What a data set holds: counts, class balance, sizes, formats, resolutions, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.pixels.decode import DecodeError, crop_resize, decode, read_header
from data_pipeline.storage.source import ShardFiles

_FORMATS = ("jpg", "png", "webp")
_TILE = 96
_LABEL_HEIGHT = 18
_PER_CLASS = 10
_MAX_CLASSES = 40
_HEADERS_READ = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The numbers of one data set."""

    name: str
    split: str
    num_samples: int
    num_shards: int
    num_bytes: int
    """Of the shards as they lie."""
    samples_per_shard: tuple[int, int]
    """Least and most."""
    image_bytes: tuple[int, int, int]
    """Least, median, most."""
    formats: dict[str, int]
    classes: dict[str, int]
    """Samples of each class, in the order of the labels; empty without labels."""
    num_unlabelled: int
    resolutions: dict[str, int]
    """``width x height`` of evenly spaced samples (1,000 at most), the most frequent first."""
    num_unreadable: int
    """Of those samples, images without a readable header."""
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return asdict(self)


def summarize(index: ShardIndex) -> Summary:
    """Counts from the index alone, and resolutions from some images' headers."""
    rows = np.concatenate([index.rows(shard) for shard in range(len(index.shards))])
    labels = rows["label"].astype(np.int64)
    counts = np.bincount(labels[labels >= 0], minlength=len(index.classes))
    formats = np.bincount(rows["format"], minlength=len(_FORMATS))
    resolutions, num_unreadable = _resolutions(index)
    return Summary(
        name=index.name,
        split=index.split,
        num_samples=index.num_samples,
        num_shards=len(index.shards),
        num_bytes=sum(shard.num_bytes for shard in index.shards),
        samples_per_shard=(int(index.lengths.min()), int(index.lengths.max())),
        image_bytes=(int(rows["size"].min()), int(np.median(rows["size"])), int(rows["size"].max())),
        formats={name: int(count) for name, count in zip(_FORMATS, formats, strict=False) if count},
        classes={name: int(count) for name, count in zip(index.classes, counts, strict=False)},
        num_unlabelled=int((labels < 0).sum()),
        resolutions=resolutions,
        num_unreadable=num_unreadable,
        digest=index.digest,
    )


def write_contact_sheet(index: ShardIndex, file: Path) -> None:
    """A PNG with a row of images for each class (40 at most), or a block of images where nothing is labelled."""
    if file.suffix.lower() != ".png":
        raise DataError(f"{file}: a contact sheet is a PNG; give a name that ends in .png")
    labels = index.labels()
    names = index.classes or ("",)
    rows = [
        _sheet_row(index, name, np.flatnonzero(labels == (label if index.classes else -1)))
        for label, name in enumerate(names[:_MAX_CLASSES])
    ]
    _, encoded = cv2.imencode(".png", np.concatenate(rows)[:, :, ::-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded.tobytes())


def _resolutions(index: ShardIndex) -> tuple[dict[str, int], int]:
    counts: Counter[str] = Counter()
    num_unreadable = 0
    spaced = np.linspace(0, index.num_samples - 1, min(_HEADERS_READ, index.num_samples)).astype(np.int64)
    for encoded in _images(index, spaced):
        try:
            header = read_header(encoded)
            counts[f"{header.width} x {header.height}"] += 1
        except DecodeError:
            num_unreadable += 1
    return dict(counts.most_common()), num_unreadable


def _images(index: ShardIndex, sample_ids: NDArray[np.int64]) -> list[bytes]:
    """Encoded images of these samples."""
    files, images = ShardFiles(), []
    for shard, row in zip(*index.locate(sample_ids), strict=True):
        place = index.rows(int(shard))[int(row)]
        images.append(files.read(index.shards[int(shard)].url, int(place["offset"]), int(place["size"])))
    files.close()
    return images


def _sheet_row(index: ShardIndex, name: str, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A caption above evenly spaced images of one class."""
    height = _LABEL_HEIGHT + _TILE
    sheet = np.full((height, _PER_CLASS * _TILE, 3), 255, dtype=np.uint8)
    caption = f"{name}  ({len(sample_ids):,})" if name else f"{len(sample_ids):,} images"
    readable = caption.encode("ascii", "replace").decode()
    cv2.putText(sheet, readable, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    if len(sample_ids):
        chosen = sample_ids[np.linspace(0, len(sample_ids) - 1, _PER_CLASS).astype(np.int64)]
        for place, encoded in enumerate(_images(index, np.unique(chosen))):
            _draw(encoded, sheet[_LABEL_HEIGHT:, place * _TILE : (place + 1) * _TILE])
    return sheet


def _draw(encoded: bytes, tile: NDArray[np.uint8]) -> None:
    """The image's largest centred square into a tile; a damaged one leaves a red tile."""
    try:
        image = decode(encoded, channels=3)
    except DecodeError:
        tile[:] = (200, 30, 30)
        return
    height, width = image.shape[:2]
    side = min(height, width)
    square: NDArray[np.uint8] = np.empty((_TILE, _TILE, 3), dtype=np.uint8)
    crop_resize(image, ((width - side) // 2, (height - side) // 2, side, side), square)
    tile[:] = square
