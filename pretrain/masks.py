"""Which patches of an image are hidden: a function of (seed, epoch, copy, sample), computed where the batch lies.

So one rank and a thousand, and a run that was resumed, hide the same; and no random state is kept or saved.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from data_pipeline.batch import Batch

_PURPOSE = zlib.crc32(b"mask")


def random_order(batch: Batch, num_patches: int, *, seed: int) -> Tensor:
    """A random order of the patches of each image, int64 [B, N], on the batch's device and without waiting for it."""
    own = _hash(_PURPOSE, seed, batch.epochs, batch.copies, batch.sample_ids)
    keys = _mixed(own.unsqueeze(1), torch.arange(num_patches, device=own.device))
    # No two keys of an image are equal (each step of the hash is bijective in the last word): any kind of sort will do.
    return keys.argsort(dim=1)


def _hash(purpose: int, seed: int, *words: Tensor) -> Tensor:
    """`data_pipeline.randomness.hash_words` on the device: 64 bits as int64 for each element of the words."""
    state = torch.full_like(words[0], purpose)
    for word in (torch.full_like(words[0], seed), *words):
        state = _mixed(state, word)
    return state


def _mixed(state: Tensor, word: Tensor) -> Tensor:
    # splitmix64 (Steele, Lea & Flood 2014); int64 products wrap like unsigned ones, shifts need the sign cut off.
    bits = (state + -0x61C8864680B583EB) ^ word
    bits = (bits ^ _shifted(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shifted(bits, 27)) * -0x6B2FB644ECCEEE15
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)
