"""score: one network over all images of a split, as they are and corrupted, every image decoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from data_pipeline.batch import Batch, normalize
from data_pipeline.index import ShardIndex
from data_pipeline.loader import EvalLoader
from data_pipeline.pixels.corruptions.corrupt import NUM_SEVERITIES, corrupt
from engine.results.confusion import Confusion, Pair
from engine.results.evaluate import Scores, Tally
from engine.world import World
from finetune.candidate import Candidate

_SEED = 0
"""Of the corruptions: the same for every network and on every day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the images say about a network."""

    scores: Scores
    confusion: dict[Pair, int]
    corruptions: Mapping[str, tuple[float, ...]]
    """Top-1 in percent at each severity, by name."""


@torch.inference_mode()
def score(
    candidate: Candidate,
    index: ShardIndex,
    location: str,
    *,
    batch_size: int,
    world: World,
    corruptions: Sequence[str] = (),
) -> Measured:
    """Scores of the model in evaluation mode; all ranks together, each on its share of the images."""
    batches = EvalLoader(
        index,
        candidate.data_config(location),
        batch_size=batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    clean, confusion = Tally(world), Confusion(world)
    tallies = {
        (name, severity): Tally(world) for name in corruptions for severity in range(1, NUM_SEVERITIES + 1)
    }
    for batch in batches:
        logits, on_device = _forward(candidate, batch, world)
        clean.add(logits, on_device)
        confusion.add(logits, on_device)
        for (name, severity), tally in tallies.items():
            tally.add(*_forward(candidate, corrupt_batch(batch, name, severity), world))
    top1 = {key: tally.scores().top1 for key, tally in tallies.items()}
    return Measured(
        scores=clean.scores(),
        confusion=confusion.counts(),
        corruptions={
            name: tuple(top1[name, severity] for severity in range(1, NUM_SEVERITIES + 1))
            for name in corruptions
        },
    )


def corrupt_batch(batch: Batch, name: str, severity: int) -> Batch:
    """The same batch with each image corrupted, as its sample's random numbers will have it; on the host."""
    pixels = batch.images.permute(0, 2, 3, 1).numpy()
    changed = np.zeros_like(pixels)
    for slot, sample_id in enumerate(batch.sample_ids.tolist()):
        if sample_id >= 0:
            changed[slot] = corrupt(pixels[slot], name, severity, seed=_SEED, sample_id=sample_id)
    return replace(batch, images=torch.from_numpy(changed).permute(0, 3, 1, 2))


def _forward(candidate: Candidate, batch: Batch, world: World) -> tuple[torch.Tensor, Batch]:
    batch = batch.to(world.device)
    images = normalize(batch.images, candidate.spec.mean, candidate.spec.std)
    return candidate.model(images).float(), batch
