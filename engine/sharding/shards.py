"""Shards: which part of each weight a rank holds in full precision, at any ZeRO stage; whole tensors from parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One floating tensor of a model, and the part of it, as if flattened, that is this rank's."""

    names: tuple[str, ...]
    """Its keys in the state dict: several for a parameter that layers share."""
    shape: torch.Size
    """Of the whole tensor."""
    start: int
    size: int
    """Numbers in the part; 0 when other ranks hold all of it."""
    divided: bool
    """Whether the ranks have a part each; else every rank has the whole."""
    frozen: bool
    """A parameter that no step changes."""
    master: Callable[[], Tensor]
    """The part as the optimizer knows it, float32, flat, not to be written."""
    live: Tensor
    """What the forward pass reads: the whole tensor, or at stage 3 this rank's partition of it."""
    partitioned: bool
    """Whether `live` is a partition (stage 3)."""

    @property
    def name(self) -> str:
        """The first of its keys."""
        return self.names[0]

    def live_part(self) -> Tensor:
        """This rank's part of `live`, flat, in its own precision."""
        start = 0 if self.partitioned else self.start
        return self.live.detach().view(-1)[start : start + self.size]

    def whole(self, part: Tensor, world: World) -> Tensor:
        """The tensor made of every rank's part; all ranks together, for one tensor after the other."""
        if not self.divided:
            return part.to(world.device).view(self.shape)
        whole = torch.zeros(self.shape, dtype=part.dtype, device=world.device)
        whole.view(-1)[self.start : self.start + self.size].copy_(part)
        return world.sum(whole)  # exact: every number has one rank that holds it and zeros from the others

    def fill(self, part: Tensor, world: World) -> None:
        """Sets what the forward pass reads to every rank's part; all ranks together, except at stage 3."""
        with torch.no_grad():
            if self.partitioned:
                self.live_part().copy_(part)
            else:
                self.live.copy_(self.whole(part, world))


def shards_of(module: nn.Module, world: World) -> list[Shard]:
    """The shards of the parameters and saved floating buffers of a module that DeepSpeed has wrapped.

    A part is what the ZeRO optimizer of stage 1 to 3 keeps a float32 copy of on this rank; at stage 0, one of as many
    equal pieces as there are ranks. Buffers are whole everywhere, and frozen parameters up to stage 2.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor
    return [_shard(tuple(names[key]), tensor, world) for key, tensor in tensors.items()]


def _shard(names: tuple[str, ...], tensor: Any, world: World) -> Shard:
    parameter = isinstance(tensor, nn.Parameter)
    frozen = parameter and (not tensor.requires_grad or _numel(tensor) == 0)
    partitioned = hasattr(tensor, "ds_tensor")
    divided = partitioned or (parameter and not frozen)
    if partitioned:
        start, size, read = _partition(tensor, frozen, world)
    elif not divided:
        start, size, read = 0, tensor.numel(), partial(_flat_float, tensor)
    elif hasattr(tensor, "_hp_mapping"):
        start, size, read = _fragment(tensor)
    else:
        share = -(-tensor.numel() // world.size)
        start = min(share * world.rank, tensor.numel())
        size = min(share, tensor.numel() - start)
        read = partial(_slice, tensor, start, size)
    return Shard(
        names=names,
        shape=tensor.ds_shape if partitioned else tensor.shape,
        start=start,
        size=size,
        divided=divided,
        frozen=frozen,
        master=read,
        live=tensor.ds_tensor if partitioned else tensor,
        partitioned=partitioned,
    )


def _partition(parameter: Any, frozen: bool, world: World) -> tuple[int, int, Callable[[], Tensor]]:
    """Stage 3 cuts every parameter into equal pieces and pads the last."""
    length = parameter.ds_tensor.numel()
    start = min(length * world.rank, parameter.ds_numel)
    size = min(length, parameter.ds_numel - start)
    if frozen:
        return start, size, lambda: _slice(parameter.ds_tensor, 0, size).float()
    return start, size, lambda: _slice(parameter._z3_optimizer.get_local_fp32_param(parameter), 0, size)


def _fragment(parameter: Any) -> tuple[int, int, Callable[[], Tensor]]:
    """Stages 1 and 2 cut the parameters of a group laid end to end; a rank may have nothing of one of them."""
    mapping = parameter._hp_mapping
    if mapping is None:
        empty = torch.empty(0, device=parameter.device)
        return 0, 0, lambda: empty
    address = mapping.lp_fragment_address
    return address.start, address.numel, mapping.get_hp_fragment


def _numel(parameter: Any) -> int:
    return int(parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel())


def _flat_float(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).float()


def _slice(tensor: Tensor, start: int, size: int) -> Tensor:
    return tensor.detach().view(-1)[start : start + size]
