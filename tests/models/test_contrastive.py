"""The sigmoid loss and its gradients against the formula in float64, torch's autograd, and open_clip's own loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import contrastive
from models.contrastive import sigmoid_pairs

BATCH, WIDTH = 7, 5
SCALE, BIAS = 9.0, -7.0


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.nn.functional.normalize(torch.randn(BATCH, WIDTH, generator=generator), dim=1) for _ in range(2)
    )


def formula(images: NDArray[np.float64], texts: NDArray[np.float64], scale: float, bias: float) -> float:
    """Equation 1 of Zhai et al. 2023, pair by pair."""
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            belong = 1.0 if i == j else -1.0
            total += math.log1p(math.exp(-belong * (scale * float(image @ text) + bias)))
    return total / len(images)


def by_hand(first: int = 0, count: int = BATCH) -> Any:
    images, texts = vectors()
    return sigmoid_pairs(
        images, texts, first=first, count=count, scale=torch.tensor([SCALE]), bias=torch.tensor([BIAS])
    )


def by_difference(change: Any) -> float:
    """Central difference of the formula in float64."""
    step = 1e-6
    images, texts = (side.double().numpy() for side in vectors())
    found = []
    for sign in (1.0, -1.0):
        parts = {"images": images.copy(), "texts": texts.copy(), "scale": SCALE, "bias": BIAS}
        change(parts, sign * step)
        found.append(formula(**parts))
    return (found[0] - found[1]) / (2 * step)


def test_the_loss_is_the_formula_in_float64_and_open_clips() -> None:
    images, texts = vectors()
    ours = by_hand().losses.mean().item()
    assert ours == pytest.approx(
        formula(images.double().numpy(), texts.double().numpy(), SCALE, BIAS), rel=1e-6
    )
    theirs = open_clip.loss.SigLipLoss()(images, texts, torch.tensor(SCALE), torch.tensor(BIAS))
    assert ours == pytest.approx(theirs.item(), rel=1e-6)


def test_gradients_are_the_differences_of_the_formula() -> None:
    pairs = by_hand()
    for side in ("images", "texts"):
        for place in ((0, 0), (3, 2), (6, 4)):

            def nudge(parts: dict[str, Any], step: float, side: str = side, place: Any = place) -> None:
                parts[side][place] += step

            assert getattr(pairs, side)[place].item() / BATCH == pytest.approx(by_difference(nudge), abs=1e-6)
    for name in ("scale", "bias"):

        def shift(parts: dict[str, Any], step: float, name: str = name) -> None:
            parts[name] += step

        assert getattr(pairs, name).sum().item() / BATCH == pytest.approx(by_difference(shift), abs=1e-6)


def test_gradients_are_those_of_autograd_through_open_clips_loss() -> None:
    leaves = [side.clone().requires_grad_() for side in vectors()]
    leaves += [torch.tensor(SCALE, requires_grad=True), torch.tensor(BIAS, requires_grad=True)]
    open_clip.loss.SigLipLoss()(*leaves).backward()
    pairs = by_hand()
    found = (pairs.images, pairs.texts, pairs.scale.sum(), pairs.bias.sum())
    for ours, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(ours / BATCH, leaf.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("columns", [1, 3, 7])
def test_parts_of_a_batch_and_pieces_of_its_logits_are_those_of_the_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_hand().split(3)
    monkeypatch.setattr(contrastive, "_COLUMNS", columns)
    parts = [by_hand(0, 3), by_hand(3, 3), by_hand(6, 1)]
    for part, expected in zip(parts, whole, strict=True):
        for name in ("losses", "images", "texts", "scale", "bias"):
            torch.testing.assert_close(getattr(part, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
