"""Measures one loader in this process and its children; prints a line of JSON. Started by benchmarks/loader.py."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.loader_peers.peers import PEERS
from benchmarks.loader_peers.task import BATCH, FORMS, SIZE

_KB = 1024


def main(arguments: list[str]) -> None:
    """Prints what was measured and leaves its worker processes to whoever started it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("loader", choices=PEERS)
    parser.add_argument("place", type=Path)
    parser.add_argument("--form", choices=FORMS, default="uint8")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=1.5)
    parser.add_argument("--augmentation", default="")
    parser.add_argument("--started", type=float, default=time.monotonic(), help="by time.monotonic()")
    parser.add_argument("--sheet", type=Path, help="also keep the first batch as a picture")
    given = parser.parse_args(arguments)
    module = importlib.import_module(f"benchmarks.loader_peers.{given.loader}")
    more = {"augmentation": given.augmentation} if given.augmentation else {}
    asked = time.monotonic()
    batches = module.batches(given.place, form=given.form, workers=given.workers, **more)
    first = next(batches)
    received = time.monotonic()
    images = first if isinstance(first, int) else _checked(first, given.form)
    if given.sheet:
        _save(images, given.form, given.sheet)
    distribution = PEERS[given.loader].distribution
    measured = {
        "images_per_s": _rate(batches, warmup=given.warmup, seconds=given.seconds),
        "first_batch_s": received - asked,
        "start_s": received - given.started,
        **_memory_of_session(),
        "version": version(distribution) if distribution else None,
    }
    print(json.dumps(measured), flush=True)


def _checked(images: Any, form: str) -> Any:
    shapes = [(BATCH, 3, SIZE, SIZE), *([(BATCH, SIZE, SIZE, 3)] if form == "uint8" else [])]
    if tuple(images.shape) not in shapes or str(images.dtype).rpartition(".")[2] != form:
        raise ValueError(f"a batch is {images.dtype} {tuple(images.shape)}; it must be {form} {shapes}")
    return images


def _rate(batches: Iterator[Any], *, warmup: float, seconds: float) -> float:
    until = time.monotonic() + warmup
    while time.monotonic() < until:
        next(batches)
    count, begun, now = 0, time.monotonic(), 0.0
    while now < begun + seconds:
        batch = next(batches)
        count += batch if isinstance(batch, int) else len(batch)
        now = time.monotonic()
    return count / (now - begun)


def _memory_of_session() -> dict[str, float]:
    # Each page counts once, shared among the processes that map it; pages of files (an mmapped corpus) are told apart.
    session, total, files = os.getsid(0), 0, 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getsid(int(folder.name)) != session:
                    continue
                lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
            except (ProcessLookupError, FileNotFoundError):
                continue
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
            total, files = total + sizes["Pss"], files + sizes["Pss_File"]
    return {"memory_mb": total * _KB / 1e6, "of_files_mb": files * _KB / 1e6}


def _save(images: Any, form: str, path: Path) -> None:
    import numpy as np
    from PIL import Image

    from benchmarks.loader_peers.task import MEAN, STD

    pixels = np.asarray(images)
    if pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    if form == "float32":
        pixels = (pixels * np.array(STD) + np.array(MEAN)) * 255
    rows = [
        np.concatenate(list(pixels[first : first + 16, ::2, ::2]), axis=1) for first in range(0, BATCH, 16)
    ]
    Image.fromarray(np.concatenate(rows).clip(0, 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # some loaders' threads never end by themselves
