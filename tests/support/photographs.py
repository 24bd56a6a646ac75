"""Real photographs that this project's dependencies ship, for tests of pixels."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np
from PIL import Image

PLACES = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)


def photographs(size: tuple[int, int] | None = None) -> list[Image.Image]:
    """RGB images of about 640 x 430 pixels, or resized to `size` (width, height)."""
    opened = [
        Image.open(io.BytesIO(files(package).joinpath(path).read_bytes())).convert("RGB")
        for package, path in PLACES
    ]
    return [image.resize(size, Image.Resampling.LANCZOS) if size else image for image in opened]


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of a file of this kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def random_boxes(
    rng: np.random.Generator, width: int, height: int, count: int, smallest: float = 0.08
) -> list[tuple[int, int, int, int]]:
    """Left, top, width, height of boxes as random resized crops draw them."""
    boxes: list[tuple[int, int, int, int]] = []
    while len(boxes) < count:
        area = width * height * rng.uniform(smallest, 1)
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = rng.integers(0, width - wide + 1), rng.integers(0, height - high + 1)
            boxes.append((int(left), int(top), wide, high))
    return boxes
