"""Confusion: which class each labelled image was taken for, in whole numbers that add up exactly over all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from engine.world import World

Pair = tuple[int, int]
"""True class, predicted class or NO_CLASS."""

NO_CLASS = -1
"""What an image is taken for whose logits are not finite: they say nothing of it, whatever topk makes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """How one class fares; shares are None where there is nothing to divide by."""

    name: str
    num_images: int
    num_predicted: int
    num_correct: int
    recall: float | None
    """Percent of its images that were recognized: its top-1."""
    precision: float | None
    """Percent of the images taken for it that were."""


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


def class_scores(counts: dict[Pair, int], names: Sequence[str]) -> tuple[ClassScores, ...]:
    """A row for each class, in the order of the names."""
    images, predicted, correct = Counter[int](), Counter[int](), Counter[int]()
    for (true, taken_for), count in counts.items():
        images[true] += count
        predicted[taken_for] += count
        correct[true] += count * (true == taken_for)
    return tuple(
        ClassScores(
            name=name,
            num_images=images[label],
            num_predicted=predicted[label],
            num_correct=correct[label],
            recall=_percent(correct[label], images[label]),
            precision=_percent(correct[label], predicted[label]),
        )
        for label, name in enumerate(names)
    )


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None
