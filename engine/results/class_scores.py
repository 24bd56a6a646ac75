"""ClassScores: how each class fares, from how often an image of one was taken for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
