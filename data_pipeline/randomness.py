"""Random numbers as a function of what they are for: a hash of integers, never a generator with a history.

The same words give the same number in every process, on every machine, with every version of numpy.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def hash_words(purpose: str, *words: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 uniform bits for each element of the broadcast `words`; `purpose` keeps uses apart."""
    state = np.array([zlib.crc32(purpose.encode())], dtype=np.uint64)
    for word in words:
        bits = np.array([word & _MASK], np.uint64) if isinstance(word, int) else word.astype(np.uint64)
        state = _mix((state + _GOLDEN) ^ bits)
    return state


def to_unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """64 random bits -> float64 in [0, 1)."""
    unit: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return unit


def permutation(size: int, purpose: str, *words: int) -> NDArray[np.int64]:
    """A random order of range(`size`)."""
    # No two hashes are equal (each step of the hash is bijective in the last word), so any kind of sort will do.
    return np.argsort(hash_words(purpose, *words, np.arange(size)))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The finalizer of splitmix64 (Steele, Lea & Flood 2014): bijective, each input bit reaches each output bit.
    mixed: NDArray[np.uint64] = bits >> np.uint64(30)
    mixed ^= bits
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
