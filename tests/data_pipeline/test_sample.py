from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.index import open_index
from data_pipeline.inspection.verify import verify
from data_pipeline.packing.build_plan import Layout
from data_pipeline.packing.corpus import Choice, read_names
from data_pipeline.packing.pack import build
from data_pipeline.storage.files import ShardFiles

SAMPLE = Path(__file__).resolve().parents[2] / "data_pipeline" / "sample"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
SPLITS = pytest.mark.parametrize(
    ("name", "file", "per_class"), [("train", "train", 600), ("test", "t10k", 100)]
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))


@SPLITS
def test_the_sample_is_balanced_and_whole(name: str, file: str, per_class: int) -> None:
    index = open_index(f"mirada://sample/{name}")
    assert np.bincount(index.labels()).tolist() == [per_class] * 10
    assert index.classes[0] == "T-shirt/top" and index.classes[9] == "Ankle boot"
    assert verify(f"mirada://sample/{name}", deep=True).faults == ()


def test_the_sample_is_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 5_000_000


@needs_debian
@SPLITS
def test_building_it_again_gives_the_same_bytes(name: str, file: str, per_class: int, tmp_path: Path) -> None:
    choice = Choice(
        per_class=per_class, label_names=read_names(SAMPLE / "class_names.txt", option="--class-names")
    )
    layout = Layout(name=name, shard_size=1000, gzip=True)
    build(DEBIAN / f"{file}-images-idx3-ubyte.gz", tmp_path / name, choice=choice, layout=layout)
    assert _digests(tmp_path / name) == _digests(SAMPLE / name)


def _digests(folder: Path) -> dict[str, str]:
    """Of each file; of what is inside where this Python's zlib packs differently from the one that made the sample."""
    compresses_like_zlib = "ng" not in zlib.ZLIB_RUNTIME_VERSION
    digests = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".gz" and not compresses_like_zlib:
            content = gzip.decompress(content)
        if path.name != "_info.json" or compresses_like_zlib:
            digests[path.name] = hashlib.sha256(content).hexdigest()
    return digests


@needs_debian
def test_pixels_and_labels_are_those_of_fashion_mnist() -> None:
    pixels = np.frombuffer(
        gzip.decompress((DEBIAN / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    labels = np.frombuffer(
        gzip.decompress((DEBIAN / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:100] for label in range(10)]))
    index, files = open_index("mirada://sample/test"), ShardFiles()
    np.testing.assert_array_equal(index.labels(), labels[chosen])
    for row, original in zip(index.rows(0), chosen, strict=True):
        encoded = files.read(index.shards[0].url, int(row["offset"]), int(row["size"]))
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(encoded))), pixels.reshape(-1, 28, 28)[original]
        )
