"""The sigmoid loss of all pairs of a batch (Zhai et al. 2023, equation 1) and its gradients, for a part of the batch.

    loss = 1/B sum_i sum_j log(1 + exp(-z_ij (t x_i y_j + b)))         z_ij = 1 where i = j, else -1

Gradients are written out, so that the B x B logits exist in pieces only, and a rank that knows the vectors of all
others needs no other exchange.

Shapes: B samples of the whole batch, S of them ours, E width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_COLUMNS = 4096
"""Of the logits at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What the pairs that our samples are in amount to; B times the loss and its derivatives."""

    losses: Tensor
    """[S]: of an image with all texts. Over the whole batch their mean is the loss."""
    images: Tensor
    """[S, E]: by our images."""
    texts: Tensor
    """[S, E]: by our texts."""
    scale: Tensor
    """[S]: by the scale t, of an image with all texts; over the whole batch they add up."""
    bias: Tensor
    """[S]: by the bias b, likewise."""

    def split(self, size: int) -> list[Pairs]:
        """Those of consecutive samples, `size` at a time."""
        columns = (self.losses, self.images, self.texts, self.scale, self.bias)
        return [
            Pairs(losses=losses, images=images, texts=texts, scale=scale, bias=bias)
            for losses, images, texts, scale, bias in zip(*(c.split(size) for c in columns), strict=True)
        ]


@torch.no_grad()
def sigmoid_pairs(
    images: Tensor, texts: Tensor, *, first: int, count: int, scale: Tensor, bias: Tensor
) -> Pairs:
    """Of the `count` samples from `first` on; unit vectors float32 [B, E] of the whole batch, image i with text i."""
    own = slice(first, first + count)
    losses, by_scale, by_bias = (torch.zeros(count, device=images.device) for _ in range(3))
    by_images, by_texts = torch.zeros_like(images[own]), torch.zeros_like(texts[own])
    for start in range(0, len(images), _COLUMNS):
        those = slice(start, start + _COLUMNS)
        cosines = images[own] @ texts[those].T
        logits = scale * cosines + bias
        losses += functional.softplus(logits).sum(1)
        errors = logits.sigmoid()
        by_images += errors @ texts[those]
        by_scale += (errors * cosines).sum(1)
        by_bias += errors.sum(1)
        by_texts += (scale * (texts[own] @ images[those].T) + bias).sigmoid() @ images[those]
    # So far no image belongs to any text; those that do are one per sample.
    cosines = (images[own] * texts[own]).sum(1)
    return Pairs(
        losses=losses - (scale * cosines + bias),
        images=scale * (by_images - texts[own]),
        texts=scale * (by_texts - images[own]),
        scale=by_scale - cosines,
        bias=by_bias - 1.0,
    )
