"""Real image files for tests: small, each different, in a folder per class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def encoded_image(number: int, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    """An image file of that kind; the number decides the pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_image_folder(
    root: Path, *, classes: tuple[str, ...] = ("cat", "dog", "eel"), per_class: int = 4
) -> Path:
    """`root`/CLASS/N.{jpg,png,webp}; every file's content is different."""
    kinds = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for place in range(per_class):
            suffix, kind = kinds[place % 3]
            content = encoded_image(1000 * label + place, kind)
            (root / name / f"{place:03d}.{suffix}").write_bytes(content)
    return root
