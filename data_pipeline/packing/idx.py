"""idx files, the format of MNIST and its relatives: grey images and labels as records; pixels become PNGs."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.packing.record import Corpus, Record, Span, gunzip

_IMAGES_MAGIC = 0x00000803
_LABELS_MAGIC = 0x00000801
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = bytes(4) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_ZLIB_HEADER = b"\x78\x01"
_MAX_STORED = 0xFFFF


def is_idx(source: Path) -> bool:
    """Whether a file's name says that it holds idx images."""
    return source.is_file() and "images" in source.name and source.name.removesuffix(".gz").endswith("-ubyte")


def read_idx(source: Path) -> Corpus:
    """Records of an ``...-images-idx3-ubyte[.gz]`` file, labelled by the labels file beside it."""
    images, labels_file = _content(source), labels_beside(source)
    num_images, height, width = _header(source, images, _IMAGES_MAGIC, 3)
    label_bytes = _content(labels_file)
    (num_labels,) = _header(labels_file, label_bytes, _LABELS_MAGIC, 1)
    if num_labels != num_images:
        raise DataError(
            f"{labels_file}: {num_labels} labels for {num_images} images in {source.name}; they are no pair"
        )
    labels = np.frombuffer(label_bytes, dtype=np.uint8, offset=8)
    size = height * width
    records = [
        Record(
            name=f"{source.name}[{row}]",
            image=Span(str(source), 16 + row * size, size),
            suffix="png",
            label=label,
            shape=(height, width),
        )
        for row, label in enumerate(labels.tolist())
    ]
    classes = tuple(str(label) for label in range(int(labels.max()) + 1)) if num_labels else ()
    stamps = tuple(f"{path.name} {_digest(path)}" for path in (source, labels_file))
    return Corpus(kind="idx", records=records, classes=classes, stamps=stamps)


def labels_beside(source: Path) -> Path:
    """The labels file that belongs to an images file; DataError naming the places looked at."""
    stem = source.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [source.with_name(stem), source.with_name(stem + ".gz")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = " or ".join(repr(candidate.name) for candidate in candidates)
    raise DataError(f"{source}: no labels beside it: expected {names} in {str(source.parent)!r}")


def encode_png(pixels: bytes, height: int, width: int) -> bytes:
    """Grey pixels as a PNG whose image data is stored, not compressed.

    Such a file depends on nothing but the pixels (not on a zlib version), decodes fastest, and compresses better
    inside a ``.tar.gz`` than PNGs that are compressed one by one.
    """
    # Each row begins with the number of its filter: none.
    rows = b"\0" + b"\0".join([pixels[start : start + width] for start in range(0, height * width, width)])
    return _png_beginning(height, width) + _chunk(b"IDAT", _stored(rows)) + _PNG_END


@lru_cache(maxsize=4)
def _png_beginning(height: int, width: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header)


def _stored(content: bytes) -> bytes:
    """A zlib stream of stored blocks."""
    blocks = [content[start : start + _MAX_STORED] for start in range(0, len(content), _MAX_STORED)]
    parts = [_ZLIB_HEADER]
    for place, block in enumerate(blocks, start=1):
        parts += (struct.pack("<BHH", place == len(blocks), len(block), len(block) ^ 0xFFFF), block)
    parts.append(struct.pack(">I", zlib.adler32(content)))
    return b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))


def _content(path: Path) -> bytes:
    return gunzip(str(path)) if path.suffix == ".gz" else path.read_bytes()


def _digest(path: Path) -> str:
    """Of the uncompressed content: the same images are the same input however they were compressed."""
    return xxhash.xxh3_128_hexdigest(_content(path))


def _header(path: Path, content: bytes, magic: int, num_dimensions: int) -> tuple[int, ...]:
    start = 4 + 4 * num_dimensions
    if len(content) < start or int.from_bytes(content[:4], "big") != magic:
        raise DataError(f"{path}: not an idx file of {num_dimensions} dimension(s) of unsigned bytes")
    dimensions = struct.unpack(f">{num_dimensions}I", content[4:start])
    expected = start + int(np.prod(dimensions, dtype=np.int64))
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes where its header says {expected}; fetch or copy it again"
        )
    return dimensions
