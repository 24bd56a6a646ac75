"""Evaluation of features that were learned without labels: by nearest neighbours and by a linear classifier.

training images -> features, on all ranks -> neighbours' votes, fitted classifier -> validation images, shared by ranks

All of it is a function of the features: nothing is drawn at random and nothing depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.base import ConfigError
from configs.training import ProbeConfig
from data_pipeline.batch import Batch, normalize
from engine.results.evaluate import Evaluator, Scores, Tally
from engine.world import World

_MOST_ITERATIONS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Features with their labels, the same on all ranks."""

    features: Tensor
    """float32 [N, D], in the order of the sample ids."""
    labels: Tensor
    """int64 [N]."""
    num_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureEvaluator(Evaluator):
    """A validation set, and the labelled training images that features are probed with."""

    train_batches: Iterable[Batch]
    """This rank's share, with sample ids from 0 to `num_train` - 1."""
    num_train: int
    num_classes: int
    probe: ProbeConfig

    def scores_alone(self, model: nn.Module) -> Scores:
        """Of what `model` gives as features [B, D] for images."""

        def features_of(batch: Batch) -> Tensor:
            found: Tensor = model(normalize(batch.images, self.mean, self.std)).float()
            return found

        bank = gather_bank(
            features_of,
            self.train_batches,
            num_images=self.num_train,
            num_classes=self.num_classes,
            world=self.world,
        )
        classify = fit_linear(bank, l2=self.probe.l2)
        vote = neighbour_votes(bank, neighbours=self.probe.neighbours, temperature=self.probe.temperature)
        by_classifier, by_neighbours = Tally(self.world), Tally(self.world)
        for batch in self.batches:
            batch = batch.to(self.world.device)
            with self.watching(batch):
                features = features_of(batch)
            by_classifier.add(classify(features), batch)
            by_neighbours.add(vote(features), batch)
        return replace(by_classifier.scores(), knn_top1=by_neighbours.scores().top1)


def gather_bank(
    features_of: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    *,
    num_images: int,
    num_classes: int,
    world: World,
) -> Bank:
    """Features of the labelled images of all ranks' batches; images of weight 0 are left out."""
    features: Tensor | None = None
    labels = torch.zeros(num_images, dtype=torch.int64, device=world.device)
    for batch in batches:
        batch = batch.to(world.device)
        found = features_of(batch)
        if features is None:
            features = torch.zeros(num_images, found.shape[1], device=world.device)
        counts = (batch.weights > 0) & (batch.targets >= 0)
        features[batch.sample_ids[counts]] = found[counts]
        labels[batch.sample_ids[counts]] = batch.targets[counts] + 1
    if features is None:
        raise ConfigError(
            "the training images have no label that may be used, so there is nothing to probe with"
        )
    # Each image's row is on one rank and zero on the others: their sum is the row, to the last bit.
    features, labels = world.sum(features), world.sum(labels)
    labelled = labels > 0
    return Bank(features=features[labelled], labels=labels[labelled] - 1, num_classes=num_classes)


def neighbour_votes(bank: Bank, *, neighbours: int, temperature: float) -> Callable[[Tensor], Tensor]:
    """Wu et al. 2018: features [B, D] -> votes [B, classes]; a neighbour's weight is exp(cosine / temperature)."""
    known = functional.normalize(bank.features, dim=1)
    count = min(neighbours, len(known))

    def vote(features: Tensor) -> Tensor:
        cosines, nearest = (functional.normalize(features, dim=1) @ known.T).topk(count, dim=1)
        # Divided by the largest weight there can be: exp(1 / 0.07) is 1.6 million.
        weights = ((cosines - 1.0) / temperature).exp()
        votes = torch.zeros(len(features), bank.num_classes, device=features.device)
        return votes.scatter_add_(1, bank.labels[nearest], weights)

    return vote


def fit_linear(bank: Bank, *, l2: float) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on standardized features: features [B, D] -> logits [B, classes].

    Its loss, the mean cross entropy + l2 / 2 * squared weights, has one minimum, which L-BFGS finds from zero. Every
    rank computes it from the same numbers: that takes less time than agreeing at each step.
    """
    deviation, mean = torch.std_mean(bank.features, dim=0, correction=0)
    scale = deviation.clamp(min=1e-6)
    inputs = (bank.features - mean) / scale
    weight = torch.zeros(bank.num_classes, inputs.shape[1], device=inputs.device, requires_grad=True)
    bias = torch.zeros(bank.num_classes, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MOST_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = functional.linear(inputs, weight, bias)
        total = functional.cross_entropy(logits, bank.labels) + 0.5 * l2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    fitted, offset = weight.detach(), bias.detach()
    return lambda features: functional.linear((features - mean) / scale, fitted, offset)
