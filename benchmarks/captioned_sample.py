"""Makes captions for the embedded sample: its images as files, and a manifest that says what is on each.

python -m benchmarks.captioned_sample FOLDER             # seconds; the same bytes each time
mirada data build FOLDER/captions.csv FOLDER/train

The captions are made from the class names by a few phrases: they say no more than the label does, which is enough to
see both towers learn, and not what captions are worth.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from data_pipeline.index import open_index
from data_pipeline.storage.files import ShardFiles

PHRASES = (
    "a photo of a {}.",
    "a small grey picture of a {}",
    "{} on a black background",
    "this is a {}",
    "one {}, seen from the side",
)


def write_manifest(folder: Path) -> Path:
    """The training images of the sample as PNG files, and ``captions.csv`` beside them."""
    index = open_index("mirada://sample/train")
    files, images = ShardFiles(index.shards), folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    manifest = folder / "captions.csv"
    with manifest.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "caption"))
        for number, shard in enumerate(index.shards):
            for row, sample in enumerate(index.rows(number), start=int(index.starts[number])):
                path, name = images / f"{row:06d}.png", index.classes[int(sample["label"])]
                path.write_bytes(files.read(shard.url, int(sample["offset"]), int(sample["size"])))
                caption = PHRASES[row % len(PHRASES)].format(name.lower())
                table.writerow((path.relative_to(folder), name, caption))
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    print(write_manifest(parser.parse_args().folder))
