"""models.losses: cross entropy that does not depend on how a batch is split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses import task_loss


def test_task_loss_is_cross_entropy_when_all_images_have_labels() -> None:
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(task_loss(logits, targets), F.cross_entropy(logits, targets))
    torch.testing.assert_close(
        task_loss(logits, targets, label_smoothing=0.1), F.cross_entropy(logits, targets, label_smoothing=0.1)
    )


def test_task_loss_ignores_images_without_label() -> None:
    logits, targets = torch.randn(6, 4, requires_grad=True), torch.tensor([0, -1, 2, -1, -1, 1])
    loss = task_loss(logits, targets, label_fraction=0.5, label_smoothing=0.1)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits[targets >= 0], targets[targets >= 0], label_smoothing=0.1)
    )
    loss.backward()
    assert logits.grad is not None and torch.all(logits.grad[targets < 0] == 0)
    assert task_loss(logits, torch.full((6,), -1)) == 0.0


@settings(max_examples=20, deadline=None)
@given(parts=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 5))
def test_the_mean_over_equal_parts_of_a_batch_is_the_loss_of_the_batch(parts: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(12, 4, generator=g), torch.randint(-1, 4, (12,), generator=g)
    pieces = zip(logits.chunk(parts), targets.chunk(parts), strict=True)
    split = torch.stack([task_loss(piece, labels, label_fraction=0.3) for piece, labels in pieces]).mean()
    torch.testing.assert_close(split, task_loss(logits, targets, label_fraction=0.3))
