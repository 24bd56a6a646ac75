"""What a data set holds: counts, class balance, sizes, formats, resolutions, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.index import ShardIndex
from data_pipeline.inspection.sample_names import FORMATS, SampleNames
from data_pipeline.inspection.sheet import Sheet, centred_square, check_name
from data_pipeline.pixels.decode import DecodeError, Header, read_header

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
    shorter_sides: dict[str, int]
    """Histogram of the shorter side of those samples, in pixels: bins that double, from the smallest image's on."""
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
    formats = np.bincount(rows["format"], minlength=len(FORMATS))
    headers, num_unreadable = _read_headers(index)
    sizes = Counter(f"{header.width} x {header.height}" for header in headers)
    return Summary(
        name=index.name,
        split=index.split,
        num_samples=index.num_samples,
        num_shards=len(index.shards),
        num_bytes=sum(shard.num_bytes for shard in index.shards),
        samples_per_shard=(int(index.lengths.min()), int(index.lengths.max())),
        image_bytes=(int(rows["size"].min()), int(np.median(rows["size"])), int(rows["size"].max())),
        formats={name: int(count) for name, count in zip(FORMATS, formats, strict=False) if count},
        classes={name: int(count) for name, count in zip(index.classes, counts, strict=False)},
        num_unlabelled=int((labels < 0).sum()),
        resolutions=dict(sizes.most_common()),
        shorter_sides=_doubling_bins([min(header.height, header.width) for header in headers]),
        num_unreadable=num_unreadable,
        digest=index.digest,
    )


def write_contact_sheet(index: ShardIndex, file: Path) -> None:
    """A PNG with a row of images for each class (40 at most), or one row where nothing is labelled."""
    check_name(file)
    labels = index.labels()
    sheet, names = Sheet(columns=_PER_CLASS), SampleNames(index)
    for label, class_name in enumerate(index.classes[:_MAX_CLASSES] or ("",)):
        sample_ids = np.flatnonzero(labels == (label if index.classes else -1))
        size = f"{len(sample_ids):,}"
        chosen = np.unique(spaced(sample_ids, _PER_CLASS))
        sheet.add_row(
            f"{class_name}  ({size})" if class_name else f"{size} images",
            [centred_square(encoded) for encoded in names.images(chosen)],
        )
    names.close()
    sheet.write(file)


def spaced(values: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of these values, evenly spaced from the first to the last."""
    places = np.linspace(0, len(values) - 1, min(most, len(values))).astype(np.int64)
    return values[places]


def _read_headers(index: ShardIndex) -> tuple[list[Header], int]:
    """Headers of evenly spaced images, and how many of those cannot be read."""
    sample_ids = spaced(np.arange(index.num_samples), _HEADERS_READ)
    headers, names = list[Header](), SampleNames(index)
    for encoded in names.images(sample_ids):
        try:
            headers.append(read_header(encoded))
        except DecodeError:
            continue
    names.close()
    return headers, len(sample_ids) - len(headers)


def _doubling_bins(sides: list[int]) -> dict[str, int]:
    """How many sides lie in 32-63, 64-127 ..., empty bins between others included."""
    if not sides:
        return {}
    powers = Counter(side.bit_length() - 1 for side in sides)
    return {
        f"{1 << power}-{(2 << power) - 1}": powers[power] for power in range(min(powers), max(powers) + 1)
    }
