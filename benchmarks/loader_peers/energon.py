"""Megatron-Energon: its index of plain tars, its loader; PIL and torchvision's transforms in a task encoder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.energon import Cooker, SampleDecoder, TaskEncoder, WorkerConfig, get_loader, get_train_dataset
from megatron.energon.task_encoder.base import stateless

from benchmarks.loader_peers.task import BATCH, shards
from benchmarks.loader_peers.transforms import pil_transform


def convert_shards(corpus: Path, folder: Path) -> None:
    """Links a corpus' tars into a folder and has Energon index them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in map(Path, shards(corpus)):
        os.link(path, folder / path.name)
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    command = [Path(sys.executable).parent / "energon", "prepare", *options, folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def batches(folder: Path, *, form: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=_Pictures(form),
    )
    return iter(get_loader(dataset, prefetch_factor=4))


@stateless
def _cook(sample: dict[str, Any]) -> dict[str, Any]:
    return {**{key: sample[key] for key in sample if key.startswith("__")}, "image": sample["jpg"]}


class _Pictures(TaskEncoder):
    decoder = SampleDecoder(image_decode="pil")
    cookers = (Cooker(_cook),)

    def __init__(self, form: str) -> None:
        super().__init__()
        self._transform = pil_transform(form)

    @stateless(restore_seeds=True)
    def encode_sample(self, sample: Any) -> torch.Tensor:
        return self._transform(sample["image"])

    def batch(self, samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(samples)
