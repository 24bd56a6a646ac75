"""Mutated tars and images through scan, index and reader in bounded memory: ``fuzz.py tar|image FOLDER N``.

Prints the number of inputs that ended well, ended in a DataError or as a bad sample; anything else ends the process.
The last input stays in FOLDER/last for whoever has to look at it.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.data import AugmentConfig, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.pixels.decode import limit_threads
from data_pipeline.reader import SampleReader
from data_pipeline.reindex import index_shards
from data_pipeline.scan import MAX_BYTES, list_members
from tests.support.photographs import encoded
from tests.support.shards import draw_image, encode, write_tar

MEMORY_BYTES = 3 << 30
"""More address space than the process has at its start: what an image of MAX_PIXELS may take, decoded and in parts."""
SECONDS_EACH = 20
"""Of processor time: the machine may be busy with other things."""
IMAGES = [
    encode(draw_image(number, 40, 50, channels), suffix)
    for number, (suffix, channels) in enumerate((s, c) for s in ("jpg", "png", "webp") for c in (1, 3))
]
IMAGES.append(encoded(Image.fromarray(draw_image(6, 40, 50, 3)), restart_marker_blocks=1))
_NUMBERS = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"-1",
    b"77777777777\0",
    b"\x80" + b"\xff" * 11,
    b"\xff\xff\xff\xff",
)

mutation = st.tuples(
    st.sampled_from(["set", "flip", "delete", "repeat", "insert", "cut", "zero"]),
    st.floats(0.0, 1.0, exclude_max=True),
    st.integers(0, 700),
    st.one_of(st.sampled_from(_NUMBERS), st.binary(min_size=1, max_size=16)),
)
HEADER_FIELDS = (0, 100, 124, 136, 148, 156, 157, 257, 345)


def mutate(content: bytes, mutations: list[tuple[str, float, int, bytes]], span: int | None = None) -> bytes:
    """Applies mutations one after another; positions are fractions of the content, or of its first `span` bytes."""
    for kind, where, length, value in mutations:
        position = int(where * min(len(content), span or len(content)))
        before, after = content[:position], content[position:]
        content = {
            "set": before + value + after[len(value) :],
            "flip": before + bytes([after[0] ^ (1 << length % 8)]) + after[1:] if after else content,
            "delete": before + after[length:],
            "repeat": before + after[:length] + after,
            "insert": before + value + after,
            "cut": before,
            "zero": before + bytes(min(length, len(after))) + after[length:],
        }[kind]
    return content


def with_field(content: bytes, block: float, field: int, value: bytes) -> bytes:
    """Writes a field of some header-sized block, and a checksum that fits: what a random flip would never get past."""
    if len(content) < 512:
        return content
    start = int(block * (len(content) // 512)) * 512
    header = bytearray(content[start : start + 512])
    header[field : field + len(value)] = value
    header = header[:512]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :]


def with_size(image: bytes, width: int, height: int) -> bytes:
    """An image whose header says another size, with checksums that fit."""
    if image.startswith(b"\x89PNG"):
        header = image[12:16] + struct.pack(">II", width % 2**32, height % 2**32) + image[24:29]
        return image[:12] + header + struct.pack(">I", zlib.crc32(header)) + image[33:]
    if image.startswith(b"RIFF"):
        if image[12:16] == b"VP8L":
            bits = (width - 1) % 2**14 | (height - 1) % 2**14 << 14
            return image[:21] + struct.pack("<I", bits) + image[25:]
        return image[:26] + struct.pack("<HH", width % 2**14, height % 2**14) + image[30:]
    frame = image.index(b"\xff\xc0")
    return image[: frame + 5] + struct.pack(">HH", height % 2**16, width % 2**16) + image[frame + 9 :]


def tar_of(names: list[str], tar_format: int) -> bytes:
    """A valid tar of tiny samples."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        for number, name in enumerate(names):
            for suffix, content in (("jpg", IMAGES[number]), ("cls", b"1"), ("json", b"{}")):
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class Bench:
    """Where inputs are tried out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.ends: Counter[str] = Counter()
        self.data = {
            mode: DataConfig.model_validate({"train": "x", "image_size": 16, "decode": mode})
            for mode in ("fast", "exact")
        }

    def begin(self, content: bytes) -> None:
        """Keeps an input for whoever looks at the end, and gives it so much time."""
        (self.folder / "last").write_bytes(content)
        shutil.rmtree(self.shards, ignore_errors=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)

    def read_tar(self, content: bytes) -> None:
        """A tar that may be anything: indexed and read, or refused."""
        self.begin(content)
        self.shards.mkdir()
        (self.shards / "a.tar").write_bytes(content)
        try:
            assert sum(member.size for member in list_members(content, name="a.tar")) <= len(content)
            index = index_shards(str(self.shards), workers=1)
        except DataError as error:
            assert "'a.tar'" in str(error)
            self.ends["refused"] += 1
            return
        rows = index.rows(0)
        assert (rows["offset"] + rows["size"] <= len(content)).all()
        assert (rows["size"] <= MAX_BYTES["jpg"]).all()
        self.read_all(index.num_samples, "fast")

    def read_image(self, content: bytes, mode: str) -> None:
        """An image that may be anything: pixels, or a bad sample with its key."""
        self.begin(content)
        write_tar(self.shards / "a.tar", [("key.jpg", content)])
        index_shards(str(self.shards), workers=1)
        self.read_all(1, mode)

    def read_all(self, count: int, mode: str) -> None:
        """Whatever can be indexed can be read, and what is no image is a bad sample."""
        reader, ids = SampleReader(open_index(str(self.shards)), self.data[mode]), np.arange(count)
        pixels = np.zeros((count, 16, 16, 3), np.uint8)
        bad = reader.read_varied(ids, ids, pixels, augment=AugmentConfig(), seed=0, epoch=0)
        assert all(sample.key and sample.shard == "a.tar" for sample in bad.values())
        reader.read_whole(ids, ids, pixels)
        self.ends.update(sample.reason for sample in bad.values())
        self.ends["read"] += count - len(bad)


def fuzz_tars(bench: Bench) -> Callable[[], None]:
    names = st.lists(
        st.sampled_from(["a", "b/c", "d/" * 60 + "e" * 90, "é", "../up", "/abs"]), max_size=4, unique=True
    )
    fields = st.tuples(
        st.floats(0.0, 1.0, exclude_max=True),
        st.sampled_from(HEADER_FIELDS),
        st.one_of(
            st.sampled_from([*_NUMBERS, *(bytes([kind]) for kind in b"01234567LKxgSVDMNX")]),
            st.binary(max_size=20),
        ),
    )

    @given(names, st.sampled_from([0, 1, 2]), st.lists(mutation, max_size=2), st.lists(fields, max_size=3))
    def run(
        names: list[str],
        tar_format: int,
        mutations: list[tuple[str, float, int, bytes]],
        changes: list[tuple[float, int, bytes]],
    ) -> None:
        content = mutate(tar_of(names, tar_format), mutations)
        for change in changes:
            content = with_field(content, *change)
        bench.read_tar(content)

    return run


def fuzz_images(bench: Bench) -> Callable[[], None]:
    # Most of what decides stands in the first bytes: sizes, tables, kinds of chunk.
    spans = st.sampled_from([32, 200, 700, None])
    sides = st.sampled_from([0, 1, 7, 49, 51, 300, 1000, 65_535, 2**31 - 1, 2**32 - 1])

    @given(
        st.sampled_from(IMAGES),
        st.none() | st.tuples(sides, sides),
        st.lists(mutation, max_size=3),
        spans,
        st.sampled_from(["fast", "exact"]),
    )
    def run(
        image: bytes,
        size: tuple[int, int] | None,
        mutations: list[tuple[str, float, int, bytes]],
        span: int | None,
        mode: str,
    ) -> None:
        if size is not None:
            image = with_size(image, *size)
        bench.read_image(mutate(image, mutations, span), mode)

    return run


def main() -> None:
    what, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    limit_threads()
    bench = Bench(folder)
    for image in IMAGES:
        bench.read_image(image, "fast")
        bench.read_image(image, "exact")
    assert bench.ends == {"read": 2 * len(IMAGES)}
    bench.ends.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MEMORY_BYTES, resource.RLIM_INFINITY))
    run = {"tar": fuzz_tars, "image": fuzz_images}[what](bench)
    chosen = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    chosen(run)()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"ends": bench.ends, "grown_mb": grown // 1024, "seconds": time.process_time()}))


if __name__ == "__main__":
    main()
