"""What autograd holds between a forward and its backward: counted in a real forward, not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], object], *, beside: Iterable[Tensor] = ()) -> int:
    """Of the storages that are saved for the backward pass, each once, those of `beside` (weights) left out."""
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in beside}
    kept: dict[int, int] = {}
    alive = []  # so that no place in memory is counted for two tensors

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result
    return sum(num_bytes for place, num_bytes in kept.items() if place not in not_counted)
