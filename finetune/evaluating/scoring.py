"""score: networks over all images of a split, as they are and corrupted, every image decoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from configs.data import MOST_BAD
from data_pipeline.bad import refuse_too_many
from data_pipeline.batch import Batch, normalize
from data_pipeline.index import ShardIndex
from data_pipeline.loader import EvalLoader
from data_pipeline.pixels.corruptions.corrupt import NUM_SEVERITIES, corrupt
from engine.kept_tokens import KeptTokens
from engine.results.class_scores import Pair
from engine.results.confusion import Confusion
from engine.results.evaluate import Scores, Tally
from engine.world import World
from finetune.candidate import Candidate
from models.dynamic import dynamic_blocks

_SEVERITIES = range(1, NUM_SEVERITIES + 1)
_SEED = 0
"""Of the corruptions: the same for every network and on every day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the images say about a network."""

    scores: Scores
    confusion: dict[Pair, int]
    corruptions: Mapping[str, tuple[float, ...]]
    """Top-1 in percent at each severity, by name."""
    tokens: float | None
    """Of an image, mean over blocks and images, where it follows the image (`model.attention.dynamic`)."""
    timed_on: torch.Tensor | None
    """Images of the first batch, as the network wants them, where some take longer than others."""
    num_left_out: int
    """Images that cannot be decoded, over all ranks."""


@torch.inference_mode()
def score(
    candidates: Sequence[Candidate],
    index: ShardIndex,
    location: str,
    *,
    batch_size: int,
    world: World,
    corruptions: Sequence[str] = (),
    max_bad_fraction: float = MOST_BAD,
) -> list[Measured]:
    """Scores of models in evaluation mode; all ranks together, each on its share of the images.

    All of them take images of the same size and channels: decoding and corrupting are done once for all. DataError on
    every rank where more images than `max_bad_fraction` cannot be decoded.
    """
    data = candidates[0].data_config(location).model_copy(update={"max_bad_fraction": max_bad_fraction})
    batches = EvalLoader(
        index,
        data,
        batch_size=batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    tallies = [_Tallies(candidate, world, corruptions) for candidate in candidates]
    for batch in batches:
        for one in tallies:
            one.add_clean(batch)
        for name in corruptions:
            for severity in _SEVERITIES:
                changed = corrupt_batch(batch, name, severity)
                for one in tallies:
                    one.add_corrupted(changed, name, severity)
    left_out = [sample for met in world.gather(batches.drain_bad()) for sample in met]
    refuse_too_many(left_out, num_samples=index.num_samples, max_fraction=max_bad_fraction)
    return [one.measured(num_left_out=len(left_out)) for one in tallies]


def corrupt_batch(batch: Batch, name: str, severity: int) -> Batch:
    """The same batch with each image corrupted, as its sample's random numbers will have it; on the host."""
    pixels = batch.images.permute(0, 2, 3, 1).numpy()
    changed = np.zeros_like(pixels)
    for slot, sample_id in enumerate(batch.sample_ids.tolist()):
        if sample_id >= 0:
            changed[slot] = corrupt(pixels[slot], name, severity, seed=_SEED, sample_id=sample_id)
    return replace(batch, images=torch.from_numpy(changed).permute(0, 3, 1, 2))


class _Tallies:
    """What is counted of one network."""

    def __init__(self, candidate: Candidate, world: World, corruptions: Sequence[str]) -> None:
        self._candidate, self._world = candidate, world
        self._clean, self._confusion = Tally(world), Confusion(world)
        self._corrupted = {name: [Tally(world) for _ in _SEVERITIES] for name in corruptions}
        self._tokens = KeptTokens(candidate.model, world) if dynamic_blocks(candidate.model) else None
        self._timed_on: torch.Tensor | None = None

    def add_clean(self, batch: Batch) -> None:
        with nullcontext() if self._tokens is None else self._tokens.watch(batch):
            logits, batch = self._forward(batch)
        if self._tokens is not None and self._timed_on is None:
            self._timed_on = self._normalized(batch)[batch.weights > 0]
        self._clean.add(logits, batch)
        self._confusion.add(logits, batch)

    def add_corrupted(self, batch: Batch, name: str, severity: int) -> None:
        self._corrupted[name][severity - 1].add(*self._forward(batch))

    def measured(self, *, num_left_out: int) -> Measured:
        """Over all ranks."""
        return Measured(
            scores=self._clean.scores(),
            confusion=self._confusion.counts(),
            corruptions={
                name: tuple(tally.scores().top1 for tally in tallies)
                for name, tallies in self._corrupted.items()
            },
            tokens=None if self._tokens is None else self._tokens.values()["tokens"],
            timed_on=self._timed_on,
            num_left_out=num_left_out,
        )

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, Batch]:
        batch = batch.to(self._world.device)
        return self._candidate.model(self._normalized(batch)).float(), batch

    def _normalized(self, batch: Batch) -> torch.Tensor:
        spec = self._candidate.spec
        return normalize(batch.images, spec.mean, spec.std)
