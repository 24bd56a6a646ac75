"""Makes the loader benchmark's corpora: tar shards cut from the photographs that Debian ships as wallpapers.

apt-get install lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds plasma-workspace-wallpapers
python -m benchmarks.photographs FOLDER [--seed 0]       # minutes; the same seed gives the same bytes
"""

from __future__ import annotations

import argparse
import io
import itertools
import multiprocessing
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path("/usr/share")
_LOMIRI = [
    "Dragonfly_by_Bolly",
    "Picture_0B_by_freespace",
    "Picture_1A_by_freespace",
    "aitzgorri_by_Aitzol_Berasategi",
    "life_by_Aitzol_Berasategi",
    "picosdeeuropa_by_Aitzol_Berasategi",
    "Bridge_by_Sander_Klootwijk",
    "Kleiber_by_Lukas_Baubkus",
    "Wine_by_Jakkub_Mede",
    "free_by_Peter_Nerlich",
    "friends_by_Aitzol_Berasategi",
    "greentock_by_Peter_Nerlich",
    "seeding_by_Clements_Engelhardt",
    "sunset_by_Aitzol_Berasategi",
]
_MATE = [
    "Dune",
    "Aqua",
    "Blinds",
    "Garden",
    "GreenMeadow",
    "LadyBird",
    "RainDrops",
    "TwoWings",
    "YellowFlower",
]
_PLASMA = [
    "BytheWater",
    "EveningGlow",
    "OneStandsOut",
    "Path",
    "ColdRipple",
    "ColorfulCups",
    "FallenLeaf",
    "Grey",
]
PHOTOGRAPHS = (
    *(f"backgrounds/{name}.jpg" for name in _LOMIRI),
    *(f"backgrounds/mate/nature/{name}.jpg" for name in _MATE),
    *(f"wallpapers/{name}/contents/images/2560x1600.jpg" for name in _PLASMA),
)
"""The wallpapers that are photographs; drawings and renderings are left out. A picture's label is its place here."""

_DETAILED = frozenset((*_LOMIRI[:6], *_MATE[:1], *_PLASMA[:4]))
# The others are so soft that a crop of them stays far below 100 KB at any sensible quality.
_LOWEST, _HIGHEST = 90, 98


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """One folder of shards."""

    name: str
    num_images: int
    width: int = 500
    height: int = 375
    format: str = "JPEG"
    at_least: int = 0
    """Bytes a JPEG has at least: its quality is the lowest of 90 to 98 that gives them."""
    detailed: bool = True
    """Only photographs with much detail."""
    region: tuple[float, float] = (0.0, 1.0)
    """The part of a photograph's width that crops are taken from."""
    num_shards: int = 1
    seed: int = 0


CORPORA = (
    Corpus(name="jpeg", num_images=6000, at_least=108_000, num_shards=6, seed=1),
    Corpus(name="jpeg_2000x1500", num_images=200, width=2000, height=1500, seed=2),
    Corpus(name="jpeg_64x64", num_images=3000, width=64, height=64, seed=3),
    Corpus(name="png", num_images=300, format="PNG", seed=4),
    Corpus(name="webp", num_images=300, format="WEBP", seed=5),
    Corpus(
        name="which_train", num_images=3100, width=320, height=240, detailed=False, region=(0.0, 0.65), seed=6
    ),
    Corpus(
        name="which_test", num_images=1860, width=320, height=240, detailed=False, region=(0.65, 1.0), seed=7
    ),
)
"""``jpeg`` is what loaders are compared on; ``which_*`` asks which photograph a crop is from, trained on the left of
each and tested on the right."""


def main(arguments: list[str]) -> int:
    """Makes the corpora that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[corpus.name for corpus in CORPORA])
    given = parser.parse_args(arguments)
    missing = [name for name in PHOTOGRAPHS if not (ROOT / name).is_file()]
    if missing:
        print(f"{len(missing)} photographs are not below {ROOT}, such as {missing[0]}; install:\n{__doc__}")
        return 2
    for corpus in CORPORA:
        folder = given.folder / corpus.name
        if (folder / "_info.json").exists() or (given.only and corpus.name not in given.only):
            continue
        _write(folder, corpus, given.seed)
        subprocess.run([sys.executable, "-m", "data_pipeline", "index", folder], check=True)
        total = sum(path.stat().st_size for path in folder.glob("*.tar"))
        print(
            f"{corpus.name}: {corpus.num_images} images, {total / corpus.num_images / 1000:.0f} KB on average"
        )
    return 0


def _write(folder: Path, corpus: Corpus, seed: int) -> None:
    labels = [label for label, name in enumerate(PHOTOGRAPHS) if not corpus.detailed or _is_detailed(name)]
    shares = np.bincount(np.arange(corpus.num_images) % len(labels)).tolist()
    tasks = [(corpus, label, share, seed) for label, share in zip(labels, shares, strict=True)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        cut = [image for images in pool.starmap(_cut, tasks, 1) for image in images]
    order = np.random.default_rng((seed, corpus.seed)).permutation(len(cut))
    folder.mkdir(parents=True, exist_ok=True)
    for number, members in enumerate(np.array_split(order, corpus.num_shards)):
        with tarfile.open(folder / f"train-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for place in members.tolist():
                label, image = cut[place]
                _add(shard, f"{place:06d}.{_suffix(corpus)}", image)
                _add(shard, f"{place:06d}.cls", str(label).encode())


def _cut(corpus: Corpus, label: int, number: int, seed: int) -> list[tuple[int, bytes]]:
    rng = np.random.default_rng((seed, corpus.seed, label))
    with Image.open(ROOT / PHOTOGRAPHS[label]) as opened:
        photograph = opened.convert("RGB")
    cut, quality = [], _LOWEST
    for crop in itertools.islice(_crops(photograph, corpus, rng), number):
        data, quality = _encode(crop, corpus, quality)
        cut.append((label, data))
    return cut


def _crops(photograph: Image.Image, corpus: Corpus, rng: np.random.Generator) -> Iterator[Image.Image]:
    first, last = (round(edge * photograph.width) for edge in corpus.region)
    largest = min((last - first) / corpus.width, photograph.height / corpus.height)
    while True:
        scale = rng.uniform(min(1.5, largest), min(largest, 24.0))
        width, height = corpus.width * scale, corpus.height * scale
        left, top = rng.uniform(first, last - width), rng.uniform(0, photograph.height - height)
        box = (left, top, left + width, top + height)
        yield photograph.resize(
            (corpus.width, corpus.height), Image.Resampling.LANCZOS, box=box, reducing_gap=2.0
        )


def _encode(crop: Image.Image, corpus: Corpus, quality: int) -> tuple[bytes, int]:
    # From the quality of the crop before, which is a good guess, down or up to the lowest that gives enough bytes.
    data = _saved(crop, corpus, quality)
    while len(data) >= corpus.at_least and quality > _LOWEST:
        lower = _saved(crop, corpus, quality - 1)
        if len(lower) < corpus.at_least:
            return data, quality
        data, quality = lower, quality - 1
    while len(data) < corpus.at_least and quality < _HIGHEST:
        quality += 1
        data = _saved(crop, corpus, quality)
    return data, quality


def _saved(crop: Image.Image, corpus: Corpus, quality: int) -> bytes:
    options = {"JPEG": {"quality": quality, "subsampling": "4:2:0"}, "WEBP": {"quality": quality}}
    stream = io.BytesIO()
    crop.save(stream, corpus.format, **options.get(corpus.format, {}))
    return stream.getvalue()


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def _is_detailed(name: str) -> bool:
    return any(part in _DETAILED for part in Path(name).with_suffix("").parts)


def _suffix(corpus: Corpus) -> str:
    return {"JPEG": "jpg"}.get(corpus.format, corpus.format.lower())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
