"""Handover: what DeepSpeed calls to write its files; it copies to host memory and leaves the rest to a Writer."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.saving.writer import Writer


class Handover:
    """DeepSpeed's checkpoint engine, by shape: `save` takes a host copy, and `writer` writes it whenever it likes."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        """Where saves go; none but during `Engine.save`."""

    def save(self, state_dict: Any, path: str) -> None:
        """Puts a copy of the state, which training may change from now on."""
        if self.writer is None:
            raise RuntimeError(f"DeepSpeed saves {path!r}, but nobody asked it to")
        self.writer.put(Path(path), partial(torch.save, host_copy(state_dict)))

    def load(self, path: str, map_location: Any = None) -> Any:
        """What `save` was given. NOTE: a pickle, as trustworthy as who wrote it."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: the writer makes folders."""

    def create(self, info: Any) -> None:
        """Nothing: a checkpoint begins with its first file."""

    def commit(self, info: Any) -> bool:
        """Nothing: the checkpoint store publishes."""
        return True

    def is_decoupled(self) -> bool:
        """False: DeepSpeed need not wait for this writer at its next step."""
        return False


def host_copy(value: Any) -> Any:
    """A deep copy with every tensor in host memory, in storage of its own and not of the buffer it is a slice of."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, host_copy(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(host_copy(item) for item in value)
    return copy.deepcopy(value)
