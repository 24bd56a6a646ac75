"""Exact evaluation over all ranks: every sample once, accuracy, loss and calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.base import ConfigError
from data_pipeline.batch import Batch, normalize
from engine.world import World

_NUM_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The images whose most probable class has a probability in one fifteenth of 0 to 1."""

    num_images: int
    confidence: float
    """Mean probability of the most probable class; 0 in an empty bin, as `accuracy`."""
    accuracy: float
    """Share of them whose label it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a classifier does on a labelled set: the model's own, or a linear one on its features."""

    num_images: int
    top1: float
    """Percent of images whose label is the most probable class."""
    top5: float
    """Percent of images whose label is among the five most probable classes."""
    ece: float
    """Expected calibration error over 15 bins, 0 to 1 (Guo et al. 2017)."""
    loss: float
    """Mean cross entropy."""
    reliability: tuple[Bin, ...] = ()
    """Confidence against accuracy in the bins that `ece` is made of, in order (Guo et al. 2017)."""
    knn_top1: float | None = None
    """Percent of images whose label their neighbours vote for; None where the model's own classifier is scored."""
    more: Mapping[str, float] = field(default_factory=dict)
    """What was measured of the same passes beside it (`Beside`), by name."""

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Scores:
        """Those that were kept as plain values (`dataclasses.asdict`)."""
        return cls(**{**kept, "reliability": tuple(Bin(**bin_) for bin_ in kept["reliability"])})

    @property
    def is_probe(self) -> bool:
        """Whether features were scored, by a linear classifier fitted to them."""
        return self.knn_top1 is not None

    def values(self, *, raw: bool = False) -> dict[str, float]:
        """As the event log names them: ``val/top1`` ..., of features ``val/probe_top1`` ... and ``val/knn_top1``.

        Those of `raw` weights, beside their average's, are ``val_raw/top1`` and so on.
        """
        section = "val_raw" if raw else "val"
        prefix = f"{section}/probe_" if self.is_probe else f"{section}/"
        named = {f"{prefix}{name}": getattr(self, name) for name in ("top1", "top5", "ece", "loss")}
        named |= {f"{section}/{name}": value for name, value in self.more.items()}
        return named if self.knn_top1 is None else {**named, f"{section}/knn_top1": self.knn_top1}

    def __str__(self) -> str:
        of_features = f"kNN top-1 {self.knn_top1:.2f} %  linear probe: " if self.knn_top1 is not None else ""
        beside = "".join(f"  {name} {value:.4g}" for name, value in self.more.items())
        return (
            f"{of_features}top-1 {self.top1:.2f} %  top-5 {self.top5:.2f} %  "
            f"calibration error {self.ece:.4f}  loss {self.loss:.4f}{beside}"
        )


class Beside(Protocol):
    """What is measured of the same forward passes beside the scores."""

    def begin(self) -> None:
        """An evaluation begins; what was watched of one that was broken off does not count."""

    def watch(self, batch: Batch) -> AbstractContextManager[object]:
        """Around the forward of a batch on its device."""

    def values(self) -> Mapping[str, float]:
        """Of all that was watched on all ranks, by name; all ranks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """A validation set and how its pixels are normalized."""

    batches: Iterable[Batch]
    """This rank's share, the same number of batches on every rank, padding with weight 0."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    world: World
    scores_raw: bool = True
    """Whether a trainer scores the weights themselves too, where it is their average that is released."""
    beside: Beside | None = None
    scores_start: bool = False
    """Whether a trainer scores the model before its first step too."""

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Scores:
        """Scores of the model as it is given (in evaluation mode); all ranks together."""
        if self.beside is not None:
            self.beside.begin()
        scores = self.scores_alone(model)
        return scores if self.beside is None else replace(scores, more=self.beside.values())

    def scores_alone(self, model: nn.Module) -> Scores:
        """Without what is measured beside them; of `model` (images) -> logits."""
        tally = Tally(self.world)
        for batch in self.batches:
            batch = batch.to(self.world.device)
            with self.watching(batch):
                logits = model(normalize(batch.images, self.mean, self.std))
            tally.add(logits.float(), batch)
        return tally.scores()

    def watching(self, batch: Batch) -> AbstractContextManager[object]:
        """Around the forward of a batch on its device."""
        return nullcontext() if self.beside is None else self.beside.watch(batch)


class Tally:
    """Adds up how logits compare with labels, and in the end over all ranks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums = torch.zeros(4 + 3 * _NUM_BINS, dtype=torch.float64, device=world.device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Logits float32 [B, classes] for the images of the batch; those without weight or label do not count."""
        self._sums += _sums(logits, batch.targets, batch.weights * (batch.targets >= 0))

    def scores(self) -> Scores:
        """Of what all ranks added; called once, by all of them."""
        return _scores(self._world.sum(self._sums).cpu())


def _sums(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Count, correct, correct in five, loss; then count, confidence and correct of each calibration bin."""
    weights = weights.double()
    targets = targets.clamp(min=0)
    losses = functional.cross_entropy(logits, targets, reduction="none").double()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    # NaN, of logits that overflowed, says nothing of the class: the image is wrong, whatever topk makes of it.
    is_known = confidence.isfinite()
    first, among = (ranked[:, 0] & is_known).double(), (ranked.any(dim=1) & is_known).double()
    confidence = confidence.nan_to_num(0.0)
    bins = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    per_bin = torch.zeros(3, _NUM_BINS, dtype=torch.float64, device=logits.device)
    for row, values in enumerate((weights, weights * confidence, weights * first)):
        per_bin[row].index_add_(0, bins, values)
    # A padded image may be anything: its loss is masked, not multiplied, so that inf * 0 does not count.
    losses = torch.where(weights > 0, weights * losses, torch.zeros_like(losses))
    totals = torch.stack([weights.sum(), (weights * first).sum(), (weights * among).sum(), losses.sum()])
    return torch.cat([totals, per_bin.flatten()])


def _scores(sums: Tensor) -> Scores:
    count = float(sums[0])
    if count == 0:
        raise ConfigError("the validation set has no labelled image, so there is nothing to score")
    _, confidence, correct = sums[4:].view(3, _NUM_BINS)
    return Scores(
        num_images=round(count),
        top1=100.0 * float(sums[1]) / count,
        top5=100.0 * float(sums[2]) / count,
        ece=float((confidence - correct).abs().sum()) / count,
        loss=float(sums[3]) / count,
        reliability=tuple(map(_bin, *sums[4:].view(3, _NUM_BINS).tolist())),
    )


def _bin(count: float, confidence: float, correct: float) -> Bin:
    return Bin(
        num_images=round(count),
        confidence=confidence / max(count, 1.0),
        accuracy=correct / max(count, 1.0),
    )
