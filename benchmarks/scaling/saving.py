"""A checkpoint of so many ranks: the files of all of them through the engine's own writer, manifest and retention.

The files are small and lie in memory: what they would hold is arithmetic, and what a disk or a network adds to each
operation is not in the seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.saving.checkpoint_folder import CheckpointFolder
from engine.saving.manifest import Manifest, read_manifest
from engine.saving.writer import FileQueue, Written

OPTIMIZER_BYTES, MODEL_BYTES, AVERAGE_BYTES = 12, 4, 4
"""Of a parameter: fp32 master weight and AdamW's two moments; the model; the moving average."""
_MEMORY = "/dev/shm"
_CONTENT = bytes(4096)
_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")

_counts: Counter[str] | None = None


def checkpoint_names(num_ranks: int) -> list[list[str]]:
    """The files of each rank at ZeRO 2 with a moving average: as a real checkpoint has them."""
    names = [
        [
            f"deepspeed/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            f"ema-{rank:05d}.safetensors",
            f"rank-{rank:05d}.pt",
        ]
        for rank in range(num_ranks)
    ]
    names[0] += ["deepspeed/mp_rank_00_model_states.pt", "shared.pt"]
    return names


def bytes_per_rank(num_parameters: int, num_ranks: int) -> float:
    """What the rank that writes most, rank 0, writes of a model at ZeRO 2: its shard, and the whole model."""
    shard = (OPTIMIZER_BYTES + AVERAGE_BYTES) * num_parameters / num_ranks
    return shard + MODEL_BYTES * num_parameters


def save(num_ranks: int) -> dict[str, float]:
    """Files and metadata operations of a checkpoint; seconds to write a rank's files, to publish, to verify a share."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if Path(_MEMORY).is_dir() else None) as place:
        folder = CheckpointFolder(path=Path(place), keep=1)
        _save_once(folder, num_ranks, step=1)  # retention removes it when the next one stands
        with _counting() as counts:
            costs = _save_once(folder, num_ranks, step=2)
        num_files = sum(1 for path in folder.final(2).rglob("*") if path.is_file())
        verified_s = _verify(folder.final(2), num_ranks)
        size = (folder.final(2) / "manifest.json").stat().st_size
    return {
        **costs,
        "files": float(num_files),
        "operations": float(sum(counts.values())),
        "verify_s": verified_s,
        "manifest_mb": size / 1e6,
    }


def _save_once(folder: CheckpointFolder, num_ranks: int, *, step: int) -> dict[str, float]:
    partial = folder.partial(step, "scale")
    start = time.perf_counter()
    written = [file for names in checkpoint_names(num_ranks) for file in _write(partial, names)]
    wrote = time.perf_counter()
    files = {file.path.relative_to(partial).as_posix(): (file.size, file.digest) for file in written}
    folder.publish(
        partial, Manifest(step=step, world_size=num_ranks, zero_stage=2, run_digest="scale", files=files)
    )
    return {"rank_s": (wrote - start) / num_ranks, "publish_s": time.perf_counter() - wrote}


def _write(partial: Path, names: list[str]) -> list[Written]:
    queue = FileQueue()
    for name in names:
        queue.put(partial / name, _put_content)
    return queue.write_all()


def _put_content(path: Path) -> None:
    path.write_bytes(_CONTENT)


def _verify(folder: Path, num_ranks: int) -> float:
    """Seconds that one rank takes for the manifest and its share of the files."""
    start = time.perf_counter()
    manifest = read_manifest(folder)
    problem = manifest.mismatch(folder, sorted(manifest.files)[0::num_ranks])
    if problem is not None:
        raise RuntimeError(problem)
    return time.perf_counter() - start


@contextmanager
def _counting() -> Iterator[Counter[str]]:
    """Counts what the interpreter asks of the file system within. NOTE: an audit hook stays for ever."""
    global _counts
    if _counts is None:
        sys.addaudithook(_note)
    _counts = Counter()
    counts = _counts
    yield counts
    _counts = Counter()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _counts is not None and event in _OPERATIONS:
        _counts[event] += 1
