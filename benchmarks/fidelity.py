"""Measures how far fast decoding is from PIL's full decode and antialiased resize of the same boxes, and its cost.

python -m benchmarks.fidelity CORPUS ... --out benchmarks/results/fidelity.json [--images 400] [--side 224]

A corpus is a folder of indexed shards (benchmarks.photographs makes them) or of image files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.result_file import installed_versions, write_result_file
from configs.data import AugmentConfig
from data_pipeline.index import open_index
from data_pipeline.pixels.augment import crop_boxes, uniforms
from data_pipeline.pixels.crop import decode_crop
from data_pipeline.pixels.decode import Header, crop_resize, decode, limit_threads, read_header
from data_pipeline.pixels.exact import decode_crop_exactly
from data_pipeline.pixels.jpeg import is_available

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

COLUMNS = {
    "corpus": ["images", "s"],
    "kind": ["way", "s"],
    "mean_psnr": ["PSNR, mean, dB", ".1f"],
    "min_psnr": ["lowest, dB", ".1f"],
    "mean_error": ["mean absolute error, levels", ".2f"],
    "ms": ["ms per crop, one core", ".2f"],
    "speed": ["speed, exact = 1", ".2f"],
}
MIN_MEAN_PSNR, MIN_PSNR = 44.0, 28.0
"""What fast decoding promises; the exit status is 1 where it is missed."""


def main(arguments: list[str]) -> int:
    """Measures every corpus and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    limit_threads()
    torch.set_num_threads(1)
    rows = [row for corpus in given.corpora for row in _measure(corpus, given)]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"Random resized crops (8 to 100 % of the area) to {given.side} x {given.side}, one per image, of up to "
            f"{given.images} images, against PIL; medians of {given.rounds} interleaved rounds. "
            f"TurboJPEG 3 was {'found' if is_available() else 'NOT found'}."
        ),
        versions=installed_versions(["pillow", "opencv-python-headless", "simplejpeg", "torch", "turbojpeg"]),
    )
    fast = [row for row in rows if row["kind"] == "fast"]
    kept = all(row["mean_psnr"] >= MIN_MEAN_PSNR and row["min_psnr"] >= MIN_PSNR for row in fast)
    return 0 if kept else 1


def _measure(corpus: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    files = _read_files(corpus, given.images)
    headers = [read_header(data) for data in files]
    sizes = np.array([(header.height, header.width) for header in headers], np.int64)
    config = AugmentConfig(crop="random_resized")
    u = uniforms(0, 0, np.arange(len(files), dtype=np.int64))
    boxes: list[Box] = [tuple(box) for box in crop_boxes(config, sizes[:, 0], sizes[:, 1], u).tolist()]
    squares = {kind: np.empty((len(files), given.side, given.side, 3), np.uint8) for kind in WAYS}
    seconds: dict[str, list[float]] = {kind: [] for kind in WAYS}
    for _ in range(given.rounds):
        for kind, way in WAYS.items():
            started = time.process_time()
            for data, header, box, out in zip(files, headers, boxes, squares[kind], strict=True):
                way(data, header, box, out)
            seconds[kind].append(time.process_time() - started)
    return [
        {
            "corpus": corpus.name,
            "kind": kind,
            **_distance(squares[kind], squares["exact"]),
            "ms": float(np.median(seconds[kind])) / len(files) * 1000,
            "speed": float(np.median(np.divide(seconds["exact"], seconds[kind]))),
            "images": len(files),
        }
        for kind in WAYS
    ]


def _distance(squares: Pixels, expected: Pixels) -> dict[str, float | None]:
    differences = squares.astype(np.float32) - expected
    squared = np.square(differences).mean(axis=(1, 2, 3))
    if not squared.any():
        return {"mean_psnr": None, "min_psnr": None, "mean_error": 0.0}
    # A square without any difference counts as one with 99 dB.
    psnr = np.minimum(10 * np.log10(255**2 / np.maximum(squared, 1e-9)), 99.0)
    return {
        "mean_psnr": float(psnr.mean()),
        "min_psnr": float(psnr.min()),
        "mean_error": float(np.abs(differences).mean()),
    }


def _read_files(corpus: Path, count: int) -> list[bytes]:
    if not (corpus / "_info.json").is_file():
        paths = sorted(path for path in corpus.iterdir() if path.suffix in (".jpg", ".png", ".webp"))
        return [path.read_bytes() for path in paths[:count]]
    index = open_index(str(corpus))
    chosen = np.linspace(0, index.num_samples - 1, min(count, index.num_samples)).astype(np.int64)
    files = []
    for shard, row in zip(*(places.tolist() for places in index.locate(chosen)), strict=True):
        found = index.rows(shard)[row]
        with open(index.shards[shard].url.removeprefix("file://"), "rb") as tar:
            tar.seek(int(found["offset"]))
            files.append(tar.read(int(found["size"])))
    return files


def _decode_whole(data: bytes, header: Header, box: Box, out: Pixels) -> None:
    crop_resize(decode(data, channels=3, header=header), box, out)


WAYS: dict[str, Callable[[bytes, Header, Box, Pixels], None]] = {
    "exact": decode_crop_exactly,
    "whole image, fast resize": _decode_whole,
    "fast": decode_crop,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
