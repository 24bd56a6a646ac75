"""Losses on logits that more than one program uses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def task_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_shares: Tensor | None = None,
    label_fraction: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of the labelled images, divided by how many of them a batch of this size holds on average.

    `logits` [B, classes], `targets` int64 [B] with -1 for an image without label. The divisor is
    ``B * label_fraction``, not the number found: dividing by what each micro-batch and rank happens to hold would weigh
    an image by its company, and the gradient would depend on how a batch is split. With equal parts, the mean of this
    over parts is this over the whole.

    `label_shares` float32 [B] are those of mixed images (``data_pipeline.mix``): each image has its own label by this
    share, and by the rest that of its neighbour (2i and 2i + 1). A label that is missing adds nothing, its share is
    not given to the other: so each label counts once in a pair, mixed or not, and the divisor stays what it is.
    """
    logits = logits.float()
    if label_shares is None:
        summed = F.cross_entropy(
            logits, targets, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
        )
    else:
        labels = soft_labels(
            targets, label_shares, num_classes=logits.shape[1], label_smoothing=label_smoothing
        )
        summed = -(labels * F.log_softmax(logits, dim=1)).sum()
    return summed / (len(targets) * label_fraction)


def soft_labels(
    targets: Tensor, label_shares: Tensor, *, num_classes: int, label_smoothing: float = 0.0
) -> Tensor:
    """float32 [B, classes] that mixed images are compared with; a row adds up to what of it is labelled."""
    theirs = targets.unflatten(0, (-1, 2)).flip(1).flatten()
    soft = label_shares.new_zeros(len(targets), num_classes)
    for labels, shares in ((targets, label_shares), (theirs, 1.0 - label_shares)):
        known = ((labels >= 0) * shares).unsqueeze(1)
        soft += known * (label_smoothing / num_classes)
        soft.scatter_add_(1, labels.clamp(min=0).unsqueeze(1), known * (1.0 - label_smoothing))
    return soft
