"""Confusion: which class each labelled image was taken for, in whole numbers that add up exactly over all ranks."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from engine.results.class_scores import NO_CLASS, Pair
from engine.world import World


class Confusion:
    """Counts (true, predicted) pairs; only those that occur take memory, however many classes there are."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._counts: Counter[Pair] = Counter()

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Logits [B, classes] for the images of the batch; those without weight or label do not count."""
        counted = (batch.weights > 0) & (batch.targets >= 0)
        # The same call as for top-1 and top-5, so that of equal logits the same one is first.
        first = logits.topk(min(5, logits.shape[1]), dim=1).indices[:, 0]
        first = first.where(logits.softmax(dim=1).isfinite().all(dim=1), NO_CLASS)
        pairs, counts = torch.stack([batch.targets, first])[:, counted].unique(dim=1, return_counts=True)
        for true, taken_for, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            self._counts[true, taken_for] += count

    def counts(self) -> dict[Pair, int]:
        """Of what all ranks added, in order; called once, by all of them."""
        total: Counter[Pair] = Counter()
        for counts in self._world.gather(self._counts):
            total.update(counts)
        return dict(sorted(total.items()))
