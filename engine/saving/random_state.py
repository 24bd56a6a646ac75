"""RandomState: the generators that training draws from on this rank, as something a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy
import torch


def random_state() -> dict[str, Any]:
    """Of Python, numpy, torch and this rank's GPU; holds only what `torch.load` takes without pickled code."""
    name, keys, position, has_gauss, gauss = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Goes on where `random_state` was taken."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
