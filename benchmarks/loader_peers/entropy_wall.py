"""The wall: entropy decoding of whole JPEGs and nothing else, in as many processes as there are cores.

libjpeg-turbo (Debian's libturbojpeg0) runs a lossless transform that transforms nothing and writes nothing
(TJXOPT_NOOUTPUT): the coefficients are read, as jpeg_read_coefficients does, and thrown away.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import tarfile
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.task import BATCH, shards

_NO_OUTPUT, _COPY_NONE = 16, 64


def batches(corpus: Path, *, form: str, workers: int) -> Iterator[int]:
    """Numbers of images decoded, without end."""
    context = multiprocessing.get_context("fork")
    done: Any = context.Queue(4 * workers)
    paths = shards(corpus)
    for worker in range(workers):
        context.Process(target=_decode_all, args=(paths[worker::workers], done), daemon=True).start()
    while True:
        yield done.get()


class _Transform(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("x", "y", "w", "h", "op", "options")),
        ("data", ctypes.c_void_p),
        ("custom_filter", ctypes.c_void_p),
    ]


def _decode_all(paths: list[str], done: Any) -> None:
    pictures = [content for path in paths for content in _pictures(path)]
    library = ctypes.CDLL(find_library("turbojpeg"))
    library.tjInitTransform.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitTransform())
    steps = _Transform(options=_NO_OUTPUT | _COPY_NONE)
    output, size = ctypes.c_void_p(), ctypes.c_ulong()
    while True:
        for number, picture in enumerate(pictures, 1):
            arguments = (ctypes.byref(output), ctypes.byref(size), ctypes.byref(steps), 0)
            if library.tjTransform(handle, picture, ctypes.c_ulong(len(picture)), 1, *arguments):
                raise RuntimeError("libturbojpeg could not read a picture")
            if number % BATCH == 0:
                done.put(BATCH)


def _pictures(path: str) -> Iterator[bytes]:
    with tarfile.open(path) as shard:
        for member in shard:
            opened = shard.extractfile(member)
            if opened is not None and member.name.endswith(".jpg"):
                yield opened.read()
