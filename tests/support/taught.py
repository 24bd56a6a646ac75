"""A tiny teacher as a release, the shards it is asked about, and recipes of students that learn from its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from configs.training import ModelConfig
from data_pipeline.index import ShardIndex
from engine.world import World
from finetune.config import FinetuneConfig
from finetune.teach import Options, teach
from models.build import build_model
from models.release import save_for_timm
from tests.support.shards import make_shards

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
LENGTHS = [13, 8, 11]
CLASSES = tuple("0123456789")
STATS = {"mean": (0.5,), "std": (0.25,)}


def make_corpus(folder: Path, lengths: list[int] | None = None, **more: Any) -> ShardIndex:
    """Grey images of 28 x 28 pixels in ten classes."""
    return make_shards(folder, lengths or LENGTHS, **more)


def make_release(folder: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """A ViT of two blocks on a grid of 4 x 4, random weights."""
    torch.manual_seed(seed)
    args = {"patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = build_model(
        ModelConfig(name="vit_tiny_patch16_224", args=args),
        num_classes=len(classes),
        in_chans=1,
        image_size=28,
        **STATS,
    )
    for parameter in model.parameters():  # a fresh ViT says much the same of every image
        parameter.data.mul_(3.0)
    folder.mkdir(parents=True)
    save_for_timm(model, model.state_dict(), folder, input_size=(1, 28, 28), classes=classes, **STATS)
    return folder


def recipe(data: Path, release: Path, /, **changes: Any) -> dict[str, Any]:
    """A recipe of two epochs in batches of 8; changes are written ``data__augment__flip=False``."""
    content: dict[str, Any] = {
        "data": {
            "train": str(data),
            "image_size": 28,
            "channels": 1,
            "mean": [0.5],
            "std": [0.25],
            "workers": 0,
            "augment": {"crop": "pad", "pad": 2, "erase": 0.3},
        },
        "model": {
            "name": "nf_seresnet26",
            "args": {"depths": [1, 1], "channels": [16, 32], "stem_type": "3x3", "stem_chs": 8},
        },
        "optim": {"lr": 1e-3},
        "train": {"duration": "2 epochs", "global_batch": 8, "ranks": 1},
        "teacher": {
            "checkpoint": str(release),
            "logits": {"temperature": 3.0},
            "attention": {"weight": 20.0},
        },
        "zero": {"stage": 0},
        "tracking": {"uri": "off"},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        section = content
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return content


def configure(data: Path, release: Path, /, **changes: Any) -> FinetuneConfig:
    """The config of `recipe`."""
    return FinetuneConfig.model_validate(recipe(data, release, **changes))


def write_cache(
    config: FinetuneConfig, out: Path, *, epochs: int | None = None, top: int = 10, grid: int = 7
) -> Path:
    """What `mirada teach` does, in this process."""
    options = Options(epochs=epochs, top=top, grid=grid, batch_size=8)
    teach(config, out, options, world=ALONE, command=f"mirada teach student.yaml --out {out}")
    return out
