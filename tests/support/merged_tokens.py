"""A ViT that merges tokens, written down image by image and token by token: what models.dynamic is held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reference(model: Any, images: Tensor, threshold: float) -> tuple[Tensor, list[list[int]]]:
    """Logits [B, classes] of timm's ViT with merging between attention and MLP, and tokens by image and block."""
    found = [_of_image(model, image, threshold) for image in images]
    return torch.cat([logits for logits, _ in found]), [counts for _, counts in found]


def _of_image(model: Any, image: Tensor, threshold: float) -> tuple[Tensor, list[int]]:
    embedded = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    tokens, members = list(embedded), [[place] for place in range(len(embedded))]
    counts = []
    for block in model.blocks:
        normed = block.norm1(torch.stack(tokens))
        attended, keys = _attention(block.attn, normed, [len(group) for group in members])
        attended = block.ls1(attended)
        tokens = [token + added for token, added in zip(tokens, attended, strict=True)]
        tokens, members = _merge(tokens, members, keys, threshold, int(model.num_prefix_tokens))
        tokens = [token + block.ls2(block.mlp(block.norm2(token))) for token in tokens]
        counts.append(len(tokens))
    places = [tokens[_place_of(place, members)] for place in range(len(embedded))]
    return model.forward_head(model.norm(torch.stack(places)[None])), counts


def _attention(attention: Any, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    heads = attention.qkv(x).reshape(len(x), 3, attention.num_heads, -1)
    q, k, v = attention.q_norm(heads[:, 0]), attention.k_norm(heads[:, 1]), heads[:, 2]
    weights = torch.tensor(sizes, dtype=x.dtype)
    mixed = []
    for head in range(attention.num_heads):
        exponentials = (q[:, head] @ k[:, head].T * attention.scale).exp() * weights
        mixed.append(exponentials / exponentials.sum(dim=1, keepdim=True) @ v[:, head])
    return attention.proj(attention.norm(torch.cat(mixed, dim=1))), k.mean(dim=1)


def _merge(
    tokens: list[Tensor], members: list[list[int]], keys: Tensor, threshold: float, prefix: int
) -> tuple[list[Tensor], list[list[int]]]:
    joined: dict[int, list[int]] = {}
    for first in range(prefix, len(tokens), 2):
        others = range(prefix + 1, len(tokens), 2)
        likeness = {
            other: torch.cosine_similarity(keys[first], keys[other], dim=0).item() for other in others
        }
        best = max(likeness, key=lambda other: likeness[other], default=None)
        if best is not None and likeness[best] > threshold:
            joined.setdefault(best, []).append(first)
    gone = {first for firsts in joined.values() for first in firsts}
    kept, places = [], []
    for number, token in enumerate(tokens):
        if number in gone:
            continue
        group = [number, *joined.get(number, [])]
        sizes = [len(members[one]) for one in group]
        total = sum(size * tokens[one] for size, one in zip(sizes, group, strict=True))
        kept.append(total / sum(sizes) if len(group) > 1 else token)
        places.append([place for one in group for place in members[one]])
    return kept, places


def _place_of(place: int, members: list[list[int]]) -> int:
    (owner,) = [number for number, group in enumerate(members) if place in group]
    return owner
