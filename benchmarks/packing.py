"""Measures how fast images are packed: ours over processes, against one process that only writes the same bytes.

python -m benchmarks.packing FOLDER [--peers PEERS/bin/python] [--rounds 5] [--out benchmarks/results/packing.json]

FOLDER gets 24,000 files of about 94 KB (JPEG by their first bytes; passing through decodes nothing) and is used again.
`bare writer` holds all images in memory and writes headers, contents and padding with one fsync per shard: the
denominator of every ratio. All others read the files from the page cache. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.result_file import installed_versions, write_result_file
from engine.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
BARE = "bare writer, 1 process, images in memory"
COLUMNS = {
    "name": ["packed by", "s"],
    "samples_per_s": ["samples/s, median", ",.0f"],
    "slowest": ["slowest round", ",.0f"],
    "fastest": ["fastest round", ",.0f"],
    "mb_per_s": ["MB/s", ",.0f"],
    "ratio": ["of the bare writer", ".2f"],
}
_PER_SHARD = 3_000
_NUM_IDX = 60_000
_LIBRARIES = ("numpy", "xxhash", "pillow", "webdataset", "litdata", "mosaicml-streaming")


def main(arguments: list[str]) -> int:
    """Measures every packer in interleaved rounds and writes the result file; or, inside, one packer once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--peers", help="Python of an environment with webdataset, litdata and mosaicml-streaming"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "packing.json")
    parser.add_argument("--measure", choices=sorted(PACKERS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        sys.stdout.write(json.dumps(_measure(given.measure, given.folder)) + "\n")
        return 0
    make_images(given.folder / "images", given.images)
    make_idx(given.folder / "idx")
    seconds: dict[str, list[float]] = {name: [] for name in PACKERS}
    versions: dict[str, str] = {}
    for _ in range(given.rounds):
        for name in PACKERS:
            measured = _run(name, given.folder, given.peers or sys.executable)
            if measured is not None:
                seconds[name].append(measured["seconds"])
                versions |= measured["versions"]
    _write(given.out, given.folder, seconds, versions)
    return 0


def make_images(folder: Path, count: int) -> None:
    """Files of random bytes in 10 class folders, sizes spread like those of real photographs."""
    if len(list(folder.glob("*/*.jpg"))) == count:
        return
    shutil.rmtree(folder, ignore_errors=True)
    generator = random.Random(0)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        size = int(min(max(generator.lognormvariate(11.3, 0.5), 10_000), 400_000))
        content = b"\xff\xd8\xff" + generator.randbytes(size - 3)
        (folder / f"class{number % 10}" / f"{number:06d}.jpg").write_bytes(content)


def make_idx(folder: Path) -> None:
    """As many grey images of 28x28 as MNIST has."""
    folder.mkdir(exist_ok=True, parents=True)
    pixels = random.Random(0).randbytes(_NUM_IDX * 784)
    (folder / "x-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, _NUM_IDX, 28, 28) + pixels)
    (folder / "x-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, _NUM_IDX) + bytes(_NUM_IDX))


def _run(name: str, folder: Path, peers: str) -> dict[str, Any] | None:
    """One measurement in a process of its own; None where the packer is not installed."""
    python = peers if name in PEERS else sys.executable
    command = [python, "-m", "benchmarks.packing", str(folder), "--measure", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr and name in PEERS:
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(name: str, folder: Path) -> dict[str, Any]:
    os.sync()  # what the round before left for the disk is not this one's
    with tempfile.TemporaryDirectory(dir=folder, prefix=".out-") as out:
        seconds = PACKERS[name](folder, Path(out) / "shards")
    return {"seconds": seconds, "versions": installed_versions(_LIBRARIES)}


def _write_bare(folder: Path, out: Path) -> float:
    images = [path.read_bytes() for path in _files(folder)]
    out.mkdir()
    start = time.perf_counter()
    for first in range(0, len(images), _PER_SHARD):
        with open(out / f"{first}.tar", "wb") as file:
            for number, image in enumerate(images[first : first + _PER_SHARD], start=first):
                for suffix, content in (("cls", b"0"), ("jpg", image)):
                    file.write(_bare_header(f"{number:06d}.{suffix}", len(content)))
                    file.write(content)
                    file.write(bytes(-len(content) % 512))
            file.write(bytes(1024))
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - start


def _bare_header(name: str, size: int) -> bytes:
    """The least that a tar header may be."""
    fields = (
        name.encode().ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + b"%011o\0" % size
        + b"0" * 11
        + b"\0"
    )
    header = fields + b" " * 8 + b"0" + bytes(100) + b"ustar\00000" + bytes(247)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _ours(num_workers: int | None, source: str = "images") -> Callable[[Path, Path], float]:
    def pack(folder: Path, out: Path) -> float:
        from data_pipeline.packing.build_plan import Layout
        from data_pipeline.packing.pack import Effort, build

        path = folder / "images" if source == "images" else folder / "idx" / "x-images-idx3-ubyte"
        start = time.perf_counter()
        build(path, out, layout=Layout(shard_size=_PER_SHARD), effort=Effort(num_workers=num_workers))
        return time.perf_counter() - start

    return pack


def _write_webdataset(folder: Path, out: Path) -> float:
    import webdataset

    out.mkdir()
    start = time.perf_counter()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=_PER_SHARD, maxsize=1e12, verbose=0) as sink:
        for number, path in enumerate(_files(folder)):
            sink.write({"__key__": f"{number:06d}", "jpg": path.read_bytes(), "cls": b"0"})
    os.sync()
    return time.perf_counter() - start


def _write_streaming(folder: Path, out: Path) -> float:
    import streaming

    start = time.perf_counter()
    with streaming.MDSWriter(
        out=str(out), columns={"image": "bytes", "label": "int"}, size_limit=1 << 28
    ) as sink:
        for path in _files(folder):
            sink.write({"image": path.read_bytes(), "label": 0})
    os.sync()
    return time.perf_counter() - start


def _read_for_litdata(path: str) -> dict[str, Any]:
    return {"image": Path(path).read_bytes(), "label": 0}


def _write_litdata(folder: Path, out: Path) -> float:
    import litdata

    start = time.perf_counter()
    litdata.optimize(
        fn=_read_for_litdata,
        inputs=[str(path) for path in _files(folder)],
        output_dir=str(out),
        chunk_bytes="256MB",
        num_workers=os.cpu_count(),
    )
    os.sync()
    return time.perf_counter() - start


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted((folder / "images").glob("*/*.jpg")))


PEERS: dict[str, Callable[[Path, Path], float]] = {
    "webdataset ShardWriter, 1 process": _write_webdataset,
    "MosaicML Streaming MDSWriter, 1 process": _write_streaming,
    "LitData optimize, a process per core": _write_litdata,
}
PACKERS: dict[str, Callable[[Path, Path], float]] = {
    BARE: _write_bare,
    "mirada data build, 1 process": _ours(1),
    "mirada data build, 2 processes": _ours(2),
    "mirada data build, as it decides": _ours(None),
    "mirada data build, 60,000 idx images": _ours(None, "idx"),
    **PEERS,
}


def _write(out: Path, folder: Path, seconds: dict[str, list[float]], versions: dict[str, str]) -> None:
    sizes = [path.stat().st_size for path in _files(folder)]
    bare = seconds[BARE]
    rows = []
    for name, rounds in seconds.items():
        if not rounds:
            continue
        is_idx = "idx" in name
        count, num_bytes = (_NUM_IDX, _NUM_IDX * 784) if is_idx else (len(sizes), sum(sizes))
        rates = [count / spent for spent in rounds]
        ratio = None if is_idx else statistics.median(b / s for b, s in zip(bare, rounds, strict=True))
        rows.append(
            {
                "name": name,
                "samples_per_s": statistics.median(rates),
                "slowest": min(rates),
                "fastest": max(rates),
                "mb_per_s": statistics.median(num_bytes / spent / 1e6 for spent in rounds),
                "ratio": ratio,
                "seconds": rounds,
            }
        )
    note = (
        f"{len(sizes):,} images of {statistics.mean(sizes) / 1e3:.0f} KB on average, {len(bare)} interleaved rounds; "
        "ratios are medians over rounds. Ours reads, hashes, indexes and syncs; the bare writer writes and syncs."
    )
    machine = {**describe_machine(), "system": platform.platform(), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    write_result_file(out, columns=COLUMNS, rows=rows, note=note, versions=versions, machine=machine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
