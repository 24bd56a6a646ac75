"""Scores against torchmetrics, with padding and missing labels in the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from configs.base import ConfigError
from data_pipeline.batch import Batch
from engine.results.evaluate import Evaluator, Scores, Tally
from engine.world import World


class Readout(nn.Module):
    """Logits that are written in the pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def batch(logits: Tensor, targets: Tensor, weights: Tensor) -> Batch:
    return Batch(
        images=logits[:, :, None, None].to(torch.uint8),
        targets=targets,
        sample_ids=torch.arange(len(targets)),
        epochs=torch.zeros_like(targets),
        copies=torch.zeros_like(targets),
        weights=weights,
    )


def scores(batches: list[Batch], channels: int, world: World) -> Scores:
    evaluator = Evaluator(batches=batches, mean=(0.0,) * channels, std=(1 / 51,) * channels, world=world)
    return evaluator.scores(Readout())


@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_scores_are_those_of_torchmetrics_over_the_samples_that_count(num_classes: int, world: World) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    pixels = torch.randint(0, 256, (300, num_classes), generator=generator)
    targets = torch.randint(0, num_classes, (300,), generator=generator)
    targets[::7] = -1
    weights = (torch.rand(300, generator=generator) > 0.2).float()
    batches = [
        batch(*part) for part in zip(pixels.split(64), targets.split(64), weights.split(64), strict=True)
    ]
    found = scores(batches, num_classes, world)

    counted = (weights > 0) & (targets >= 0)
    logits, labels = pixels[counted] * (51 / 255), targets[counted]
    top5 = 100 * multiclass_accuracy(logits, labels, num_classes, top_k=min(5, num_classes), average="micro")
    assert found.num_images == int(counted.sum())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found.top5 == pytest.approx(float(top5))
    assert found.ece == pytest.approx(
        float(multiclass_calibration_error(logits.softmax(1), labels, num_classes, n_bins=15)), abs=1e-5
    )
    unique_best = (logits == logits.amax(1, keepdim=True)).sum(1) == 1
    if bool(unique_best.all()):
        top1 = 100 * multiclass_accuracy(logits, labels, num_classes, average="micro")
        assert found.top1 == pytest.approx(float(top1))


def test_an_image_of_weight_zero_may_have_any_loss(world: World) -> None:
    pixels, targets = torch.tensor([[255, 0], [0, 255]]), torch.tensor([0, 0])
    found = scores([batch(pixels, targets, torch.tensor([1.0, 0.0]))], 2, world)
    assert (found.num_images, found.top1) == (1, 100.0)


def test_a_set_without_labels_is_an_error(world: World) -> None:
    pixels = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ConfigError, match="no labelled image"):
        scores([batch(pixels, torch.tensor([-1, -1]), torch.ones(2))], 2, world)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_image_whose_logits_are_no_numbers_counts_as_wrong(broken: float, world: World) -> None:
    tally = Tally(world)
    logits = torch.tensor([[9.0, 0.0], [broken, 0.0], [broken, broken]])
    tally.add(logits, batch(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.ones(3)))
    found = tally.scores()
    assert (found.num_images, found.top1, found.top5) == (3, pytest.approx(100 / 3), pytest.approx(100 / 3))
    assert found.ece == pytest.approx(0.0, abs=1e-3)
