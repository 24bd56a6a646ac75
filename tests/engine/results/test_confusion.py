"""Confusion against scikit-learn, and in whole numbers over two real ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report, confusion_matrix

from data_pipeline.batch import Batch
from engine.results.class_scores import NO_CLASS, class_scores
from engine.results.confusion import Confusion
from engine.world import World

NUM_CLASSES = 7


def make_batches() -> list[tuple[torch.Tensor, Batch]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, NUM_CLASSES, generator=generator)
    logits[:, 6] = -9.0  # a class that nothing is taken for
    targets = torch.randint(0, NUM_CLASSES - 1, (500,), generator=generator) + (torch.arange(500) % 9 == 0)
    targets[::11] = -1
    weights = (torch.rand(500, generator=generator) > 0.1).float()
    parts = zip(logits.split(100), targets.split(100), weights.split(100), strict=True)
    return [(part, make_batch(part_targets, part_weights)) for part, part_targets, part_weights in parts]


def make_batch(targets: torch.Tensor, weights: torch.Tensor) -> Batch:
    none = torch.zeros_like(targets)
    images = torch.zeros(len(targets), 1, 1, 1, dtype=torch.uint8)
    return Batch(images=images, targets=targets, sample_ids=none, epochs=none, copies=none, weights=weights)


def counted() -> tuple[np.ndarray, np.ndarray]:
    pairs = [(logits.argmax(1), batch.targets, batch.weights) for logits, batch in make_batches()]
    predicted, targets, weights = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    counts = (weights > 0) & (targets >= 0)
    return targets[counts].numpy(), predicted[counts].numpy()


def test_an_image_whose_logits_are_not_finite_is_taken_for_no_class(world: World) -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [0.0, float("inf")]])
    confusion = Confusion(world)
    confusion.add(logits, make_batch(torch.tensor([1, 1, 1]), torch.ones(3)))
    counts = confusion.counts()
    assert counts == {(1, NO_CLASS): 2, (1, 1): 1}
    assert [(row.num_images, row.num_predicted) for row in class_scores(counts, ["a", "b"])] == [
        (0, 0),
        (3, 1),
    ]


def test_counts_and_class_scores_are_those_of_scikit_learn(world: World) -> None:
    confusion = Confusion(world)
    for logits, batch in make_batches():
        confusion.add(logits, batch)
    counts = confusion.counts()
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    for (true, predicted), count in counts.items():
        matrix[true, predicted] = count
    true, predicted = counted()
    assert np.array_equal(matrix, confusion_matrix(true, predicted, labels=range(NUM_CLASSES)))

    names = [f"class {label}" for label in range(NUM_CLASSES)]
    expected = classification_report(
        true, predicted, labels=range(NUM_CLASSES), target_names=names, output_dict=True, zero_division=np.nan
    )
    for row in class_scores(counts, names):
        entry = expected[row.name]
        assert row.num_images == entry["support"]
        assert row.recall == pytest.approx(100 * entry["recall"])
        if row.precision is not None:
            assert row.precision == pytest.approx(100 * entry["precision"])
    assert [row.name for row in class_scores(counts, names) if row.precision is None] == ["class 6"]


def test_nothing_that_counts_is_no_error(world: World) -> None:
    confusion = Confusion(world)
    confusion.add(torch.zeros(2, 3), make_batch(torch.tensor([-1, 0]), torch.tensor([1.0, 0.0])))
    assert confusion.counts() == {}
