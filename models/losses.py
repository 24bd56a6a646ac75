"""Losses on logits that more than one program uses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def task_loss(
    logits: Tensor, targets: Tensor, *, label_fraction: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of the labelled images, divided by how many of them a batch of this size holds on average.

    `logits` [B, classes], `targets` int64 [B] with -1 for an image without label. The divisor is
    ``B * label_fraction``, not the number found: dividing by what each micro-batch and rank happens to hold would weigh
    an image by its company, and the gradient would depend on how a batch is split. With equal parts, the mean of this
    over parts is this over the whole.
    """
    summed = F.cross_entropy(
        logits.float(), targets, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    return summed / (len(targets) * label_fraction)
