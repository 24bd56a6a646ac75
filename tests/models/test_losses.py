"""models.losses: cross entropy that does not depend on how a batch is split, of mixed images as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses import soft_labels, task_loss


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


def shares_of(pairs: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(pairs, generator=torch.Generator().manual_seed(seed)).repeat_interleave(2)


def test_the_loss_of_mixed_images_is_cross_entropy_of_both_labels_by_their_shares() -> None:
    logits, targets, shares = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 1]), shares_of(3)
    theirs = targets[[1, 0, 3, 2, 5, 4]]
    own, other = (
        F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1) for labels in (targets, theirs)
    )
    expected = (shares * own + (1 - shares) * other).mean()
    torch.testing.assert_close(task_loss(logits, targets, label_shares=shares, label_smoothing=0.1), expected)


def test_images_that_are_wholly_their_own_have_the_loss_of_unmixed_ones() -> None:
    logits, targets = torch.randn(6, 4), torch.tensor([0, -1, 2, -1, -1, 1])
    options = {"label_fraction": 0.5, "label_smoothing": 0.2}
    whole = task_loss(logits, targets, label_shares=torch.ones(6), **options)
    torch.testing.assert_close(whole, task_loss(logits, targets, **options))


@settings(max_examples=30, deadline=None)
@given(
    targets=st.lists(st.integers(-1, 4), min_size=2, max_size=12).filter(lambda labels: len(labels) % 2 == 0),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_each_label_counts_once_in_its_pair_and_a_missing_one_gives_its_share_to_nobody(
    targets: list[int], smoothing: float
) -> None:
    labels, shares = torch.tensor(targets), shares_of(len(targets) // 2)
    soft = soft_labels(labels, shares, num_classes=5, label_smoothing=smoothing)
    assert (soft >= 0).all()
    known = labels >= 0
    theirs = known.view(-1, 2).flip(1).flatten()
    torch.testing.assert_close(soft.sum(dim=1), shares * known + (1 - shares) * theirs)
    of_pairs = soft.view(-1, 2, 5).sum(dim=(1, 2))
    torch.testing.assert_close(of_pairs, known.view(-1, 2).sum(dim=1).float())
    if not smoothing:
        counts = torch.bincount(labels[known], minlength=5).float()
        torch.testing.assert_close(soft.sum(dim=0), counts)


@settings(max_examples=20, deadline=None)
@given(parts=st.sampled_from([1, 2, 3, 6]), seed=st.integers(0, 5))
def test_the_mean_over_parts_of_whole_pairs_is_the_loss_of_the_mixed_batch(parts: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(12, 4, generator=g), torch.randint(-1, 4, (12,), generator=g)
    cut = [tensor.chunk(parts) for tensor in (logits, targets, shares_of(6, seed))]
    options = {"label_fraction": 0.3, "label_smoothing": 0.1}
    split = [
        task_loss(piece, labels, label_shares=own, **options) for piece, labels, own in zip(*cut, strict=True)
    ]
    whole = task_loss(logits, targets, label_shares=shares_of(6, seed), **options)
    torch.testing.assert_close(torch.stack(split).mean(), whole)
