"""Masks are a function of (seed, epoch, copy, sample), the same wherever a sample lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.randomness import hash_words
from pretrain.masks import random_order
from tests.support.masked import tiny_batch

NUM_PATCHES = 16


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_the_order_is_that_of_the_hash_that_all_random_numbers_of_a_run_come_from(seed: int) -> None:
    ids, epochs, copies = torch.tensor([0, 5, 2**40]), torch.tensor([0, 3, 3]), torch.tensor([0, 0, 2])
    batch = replace(tiny_batch(3), sample_ids=ids, epochs=epochs, copies=copies)
    words = [word.numpy()[:, None] for word in (epochs, copies, ids)]
    keys = hash_words("mask", seed, *words, np.arange(NUM_PATCHES)).view(np.int64)
    assert np.array_equal(random_order(batch, NUM_PATCHES, seed=seed).numpy(), np.argsort(keys, axis=1))


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_a_sample_has_the_same_mask_in_whatever_part_of_a_batch_it_lies(size: int) -> None:
    batch = tiny_batch(11, epoch=2)
    whole = random_order(batch, NUM_PATCHES, seed=1)
    parts = [random_order(part, NUM_PATCHES, seed=1) for part in batch.split(size)]
    assert torch.equal(torch.cat(parts), whole)


def test_masks_differ_between_samples_epochs_copies_and_seeds() -> None:
    batch = tiny_batch(2)
    other_copy = replace(batch, copies=batch.copies + 1)
    orders = [
        random_order(batch, NUM_PATCHES, seed=0),
        random_order(batch, NUM_PATCHES, seed=1),
        random_order(tiny_batch(2, epoch=1), NUM_PATCHES, seed=0),
        random_order(other_copy, NUM_PATCHES, seed=0),
    ]
    rows = torch.cat(orders)
    assert len(rows.unique(dim=0)) == len(rows)


def test_each_patch_is_hidden_as_often_as_each_other() -> None:
    ids = torch.arange(20_000)
    zeros = torch.zeros_like(ids)
    batch = replace(tiny_batch(1), sample_ids=ids, epochs=zeros, copies=zeros)
    first = random_order(batch, NUM_PATCHES, seed=0)[:, :4].flatten().bincount()
    expected, deviation = 20_000 * 4 / NUM_PATCHES, (20_000 * 0.25 * 0.75) ** 0.5
    assert float((first - expected).abs().max()) < 4 * deviation
