"""Nearest neighbours and linear classifier against scikit-learn on the same features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from configs.base import ConfigError
from configs.data import DataConfig
from configs.training import ProbeConfig
from data_pipeline.batch import Batch
from data_pipeline.index import open_index
from data_pipeline.loader import EvalLoader
from engine.results.labelled_sample import LabelledSample
from engine.results.probe import Bank, FeatureEvaluator, fit_linear, gather_bank, neighbour_votes
from engine.world import World

NUM_CLASSES = 5
DATA = DataConfig(train="", image_size=8, channels=1, mean=(0.286,), std=(0.353,), workers=0)


def clusters(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping classes in 12 dimensions of unlike scale."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    features = centres[labels] + torch.randn(count, 12, generator=generator)
    return features * torch.logspace(-2, 2, 12) + 3.0, labels


@pytest.fixture(scope="module")
def bank() -> Bank:
    features, labels = clusters(600, seed=1)
    return Bank(features=features, labels=labels, num_classes=NUM_CLASSES)


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (600, 0.07)])
def test_votes_are_those_of_scikit_learn(bank: Bank, neighbours: int, temperature: float) -> None:
    queries, _ = clusters(300, seed=2)
    # Cosines of features that are all alike would be told apart by float32's last bits.
    centred = replace(bank, features=bank.features - 3.0)
    votes = neighbour_votes(centred, neighbours=neighbours, temperature=temperature)(queries - 3.0)
    reference = KNeighborsClassifier(
        n_neighbors=neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(centred.features.double(), bank.labels)
    expected = reference.predict_proba((queries - 3.0).double())
    assert (votes / votes.sum(1, keepdim=True)).numpy() == pytest.approx(expected, abs=1e-4)


def test_more_neighbours_than_images_are_all_images(bank: Bank) -> None:
    queries, _ = clusters(10, seed=2)
    votes = [neighbour_votes(bank, neighbours=count, temperature=0.07)(queries) for count in (600, 10_000)]
    assert torch.equal(*votes)


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_linear_classifier_is_that_of_scikit_learn(bank: Bank, l2: float) -> None:
    queries, _ = clusters(300, seed=2)
    scaler = StandardScaler().fit(bank.features.double())
    reference = LogisticRegression(C=1 / (l2 * len(bank.labels)), tol=1e-8, max_iter=10_000)
    reference.fit(scaler.transform(bank.features.double()), bank.labels)
    found = fit_linear(bank, l2=l2)(queries).softmax(1).numpy()
    assert found == pytest.approx(reference.predict_proba(scaler.transform(queries.double())), abs=2e-3)


def test_the_linear_classifier_is_the_same_each_time(bank: Bank) -> None:
    queries, _ = clusters(50, seed=2)
    assert torch.equal(fit_linear(bank, l2=1e-3)(queries), fit_linear(bank, l2=1e-3)(queries))


def test_a_feature_that_never_changes_does_no_harm(bank: Bank) -> None:
    constant = replace(bank, features=torch.cat([bank.features, torch.full((600, 1), 7.0)], dim=1))
    queries, labels = clusters(300, seed=2)
    logits = fit_linear(constant, l2=1e-3)(torch.cat([queries, torch.full((300, 1), 7.0)], dim=1))
    assert float((logits.argmax(1) == labels).float().mean()) > 0.7


def batches(count: int, *, size: int, unlabelled: int = 0) -> Iterator[Batch]:
    """Batches whose last one is padded, as EvalLoader gives them; pixel values tell images apart."""
    ids = torch.cat([torch.arange(count), torch.full((-count % size,), -1)])
    for part in ids.split(size):
        targets = torch.where(part >= unlabelled, part % NUM_CLASSES, -1)
        yield Batch(
            images=part.clamp(min=0).to(torch.uint8)[:, None, None, None],
            targets=torch.where(part >= 0, targets, -1),
            sample_ids=part,
            epochs=torch.zeros_like(part),
            copies=torch.zeros_like(part),
            weights=(part >= 0).float(),
        )


@pytest.mark.parametrize("size", [1, 7, 20, 32])
def test_the_bank_holds_each_labelled_image_once_in_the_order_of_ids(size: int, world: World) -> None:
    found = gather_bank(
        lambda batch: batch.images.flatten(1).float(),
        batches(20, size=size, unlabelled=3),
        num_images=20,
        num_classes=NUM_CLASSES,
        world=world,
    )
    assert found.features[:, 0].tolist() == list(range(3, 20))
    assert found.labels.tolist() == [i % NUM_CLASSES for i in range(3, 20)]


def test_a_bank_without_labels_is_an_error(world: World) -> None:
    with pytest.raises(ConfigError, match="no label that may be used"):
        gather_bank(lambda batch: batch.images, [], num_images=0, num_classes=2, world=world)


class Pixels(nn.Module):
    """Features that are a fixed projection of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(64, 16)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.project(images.flatten(1))
        return features


def test_scores_are_those_of_scikit_learn_on_the_embedded_sample(world: World) -> None:
    sample = LabelledSample(open_index("mirada://sample/train"), DATA, size=500)
    val = open_index("mirada://sample/test")
    model, probe = Pixels(), ProbeConfig(l2=1e-2)
    evaluator = FeatureEvaluator(
        batches=EvalLoader(val, DATA, batch_size=300),
        mean=DATA.mean,
        std=DATA.std,
        world=world,
        train_batches=EvalLoader(sample, DATA, batch_size=300),
        num_train=sample.num_samples,
        num_classes=10,
        probe=probe,
    )
    scores = evaluator.scores(model)
    known, labels = _features(model, sample)
    asked, truth = _features(model, val)
    neighbours = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    assert scores.num_images == 1000
    assert scores.knn_top1 == pytest.approx(100 * neighbours.fit(known, labels).score(asked, truth), abs=0.11)
    scaler = StandardScaler().fit(known)
    linear = LogisticRegression(C=1 / (0.01 * 500), tol=1e-8, max_iter=10_000)
    linear.fit(scaler.transform(known), labels)
    assert scores.top1 == pytest.approx(100 * linear.score(scaler.transform(asked), truth), abs=0.11)
    assert scores.values().keys() == {
        *(f"val/probe_{name}" for name in ("top1", "top5", "ece", "loss")),
        "val/knn_top1",
    }
    of_raw_weights = scores.values(raw=True)
    assert {
        name.replace("val/", "val_raw/"): value for name, value in scores.values().items()
    } == of_raw_weights
    assert evaluator.scores(model) == scores


@torch.no_grad()
def _features(model: nn.Module, index: object) -> tuple[np.ndarray, np.ndarray]:
    found = [
        (model((batch.images / 255 - 0.286) / 0.353)[batch.weights > 0], batch.targets[batch.weights > 0])
        for batch in EvalLoader(index, DATA, batch_size=128)
    ]
    features, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return features.double().numpy(), labels.numpy()
