"""What pretraining minimises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from data_pipeline.batch import Batch, normalize
from data_pipeline.mix import mix_images
from engine.objective import Loss
from models.losses import task_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """Cross entropy on labels, of images mixed as the batch says."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_fraction: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        logits = model(mix_images(normalize(batch.images, self.mean, self.std), batch.mix))
        loss = task_loss(
            logits,
            batch.targets,
            label_shares=batch.label_shares,
            label_fraction=self.label_fraction,
            label_smoothing=self.label_smoothing,
        )
        return Loss(total=loss)
