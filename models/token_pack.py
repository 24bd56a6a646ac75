"""Images with different numbers of tokens in one batch: all tokens in one sequence, image behind image.

What is computed token by token (norms, projections, MLPs: most of a ViT) takes the sequence as it is, and costs what
its tokens cost. Attention is within an image. Images of about as many tokens go together, padded to the longest: on a
CPU padding is dear, and groups are many; on a GPU calls are dear, and there is one group.

    packed [T, ...] -> for each group [b, M, ...] -> attend() -> packed [T, ...]

Shapes: T tokens of all B images, b images of a group, M tokens of its longest image, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attention import Kernel, attend

_CPU_SLACK = 0.125
"""How much shorter than the longest image of a group the others may be on a CPU, where a call has its price too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images that are computed together."""

    images: tuple[int, ...]
    index_bM: Tensor | None
    """Where each token is in the sequence, the image's first one for padding; None: the group is the sequence, cut."""
    is_token_bM: Tensor | None
    """What is no padding; None where nothing is."""

    def take(self, x: Tensor) -> Tensor:
        """Packed [T, ...] -> [b, M, ...]."""
        if self.index_bM is not None:
            x = x.index_select(0, self.index_bM.flatten())
        taken: Tensor = x.unflatten(0, (len(self.images), -1))
        return taken


class TokenPack:
    """Where the images of a packed batch begin and end, and which of them are computed together."""

    def __init__(self, counts: Sequence[int], device: torch.device, *, slack: float | None = None) -> None:
        self.counts = tuple(counts)
        self._device = device
        if slack is None:
            slack = _CPU_SLACK if device.type == "cpu" else 1.0
        self._lengths = torch.tensor(self.counts, device=device)
        self.ends = self._lengths.cumsum(0)
        self.starts = self.ends - self._lengths
        self.groups = tuple(self._group(images) for images in alike(self.counts, slack=slack))

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.counts)

    def image_of_token(self) -> Tensor:
        """int64 [T]."""
        images = torch.arange(len(self.counts), device=self._device)
        return images.repeat_interleave(self._lengths, output_size=self.num_tokens)

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """[b, M, ...] of each group -> packed [T, ...], without padding."""
        flat = [part.flatten(0, 1) for part in parts]
        if self.groups[0].index_bM is None:
            return flat[0]
        return torch.cat(flat).index_select(0, self._places_in_groups())

    def _group(self, images: tuple[int, ...]) -> Group:
        lengths = [self.counts[image] for image in images]
        longest, is_even = max(lengths), min(lengths) == max(lengths)
        if is_even and len(images) == len(self.counts):
            return Group(images=tuple(range(len(images))), index_bM=None, is_token_bM=None)
        chosen = torch.tensor(images, device=self._device)
        offsets = torch.arange(longest, device=self._device)
        is_token = offsets < self._lengths[chosen].unsqueeze(1)
        index = self.starts[chosen].unsqueeze(1) + offsets * is_token
        return Group(images=images, index_bM=index, is_token_bM=None if is_even else is_token)

    def _places_in_groups(self) -> Tensor:
        """Where each token of the sequence is in the groups, laid one behind the other."""
        bases, begin = [0] * len(self.counts), 0
        for group in self.groups:
            longest = max(self.counts[image] for image in group.images)
            for row, image in enumerate(group.images):
                bases[image] = begin + row * longest
            begin += len(group.images) * longest
        shift = torch.tensor(bases, device=self._device) - self.starts
        return torch.arange(self.num_tokens, device=self._device) + shift[self.image_of_token()]


def alike(counts: Sequence[int], *, slack: float) -> list[tuple[int, ...]]:
    """Images in groups, the longest first, in which none is shorter than its longest by more than `slack` of it."""
    groups: list[list[int]] = []
    for image in sorted(range(len(counts)), key=lambda image: -counts[image]):
        if groups and counts[image] >= (1.0 - slack) * counts[groups[-1][0]]:
            groups[-1].append(image)
        else:
            groups.append([image])
    return [tuple(group) for group in groups]


def attend_packed(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    pack: TokenPack,
    bias_T: Tensor | None = None,
    *,
    kernel: Kernel = "auto",
    scale: float | None = None,
) -> Tensor:
    """Attention of each token to the tokens of its image, [T, H, E]; `bias_T` is added to the scores of a key."""
    mixed = [
        attend(*_heads_first(group, q_THE, k_THE, v_THE), _bias(group, bias_T), kernel=kernel, scale=scale)
        for group in pack.groups
    ]
    return pack.pack([part.transpose(1, 2) for part in mixed])


def _heads_first(group: Group, *packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q_bHME, k_bHME, v_bHME = (group.take(x).transpose(1, 2) for x in packed)
    return q_bHME, k_bHME, v_bHME


def _bias(group: Group, bias_T: Tensor | None) -> Tensor | None:
    """[b, 1, 1, M], -inf for padding; None where all keys are alike."""
    is_token_bM = group.is_token_bM
    if bias_T is not None:
        bias_bM = group.take(bias_T)
    elif is_token_bM is not None:
        bias_bM = torch.zeros(is_token_bM.shape, device=is_token_bM.device)
    else:
        return None
    if is_token_bM is not None:
        bias_bM = bias_bM.masked_fill(~is_token_bM, -math.inf)
    return bias_bM[:, None, None]
