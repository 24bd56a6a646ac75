"""Ranks of test_sharded_teacher: what a teacher says whole and in shares, and how many of its numbers a rank holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from engine.sharding.zero import shard_frozen
from engine.world import World, close_world, init_world
from finetune.teacher import Precision, Teacher, TeacherOutput, load_teacher


def load(release: Path, precision: Precision) -> Teacher:
    """A ViT, or a CNN that has no attention to show."""
    layers = (0, -1) if release.name == "vit" else ()
    return load_teacher(
        str(release), num_classes=10, attention_layers=layers, token_layers=(-1,), precision=precision
    )


def compare(release: Path, precision: Precision, world: World) -> dict[str, Any]:
    """Each rank has images of its own; two batches, since what was gathered is dropped between them."""
    images = torch.randint(
        256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(world.rank)
    )
    whole, sharded = load(release, precision), load(release, precision)
    shard_frozen(sharded.network, world)
    pairs = [(flat(whole(batch)), flat(sharded(batch))) for batch in (images, 255 - images)]
    held = sum(p.numel() for p in sharded.network.parameters())
    return {
        "differs": max(float((a - b).abs().max()) for a, b in pairs),
        "held": held + sum(p.ds_tensor.numel() for p in sharded.network.parameters()),
        "whole": sum(p.numel() for p in whole.network.parameters()),
    }


def flat(told: TeacherOutput) -> torch.Tensor:
    """All that it said."""
    return torch.cat([part.flatten() for part in (told.logits, *told.attention, *told.tokens)])


if __name__ == "__main__":
    ranks, found = init_world(), {}
    for name in ("vit", "cnn"):
        for lower in ("fp32", "bf16"):
            found[f"{name}, {lower}"] = compare(Path(sys.argv[1]) / name, lower, ranks)  # type: ignore[arg-type]
    sys.stdout.write(json.dumps(found) + "\n")
    close_world()
